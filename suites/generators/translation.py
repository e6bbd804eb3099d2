"""Translation: common French and Spanish words into English, asked in chat after two examples.

Invariant: the words of the examples are never asked; every usual English meaning is accepted.
"""

from generators.rows import Row, table, unique

SHOTS = (("French", "rue", "street"), ("Spanish", "luz", "light"))

# Spanish | French | English; "-" where a word is spelled as in English; meanings separated by `/`
WORDS = table("""
perro | chien | dog
gato | chat | cat
casa | maison | house/home
agua | eau | water
pan | pain | bread
leche | lait | milk
libro | livre | book
amigo | ami | friend
madre | mère | mother/mom
padre | père | father/dad
hermano | frère | brother
hermana | sœur | sister
hijo | fils | son
hija | fille | daughter/girl
sol | soleil | sun
luna | lune | moon
estrella | étoile | star
día | jour | day
noche | nuit | night
mañana | demain | tomorrow/morning
semana | semaine | week
mes | mois | month
año | année | year
bueno | bon | good
malo | mauvais | bad
grande | grand | big/large/great/tall
pequeño | petit | small/little
nuevo | nouveau | new
viejo | vieux | old
rojo | rouge | red
verde | vert | green
azul | bleu | blue
blanco | blanc | white
negro | noir | black
amarillo | jaune | yellow
uno | un | one/a/an
dos | deux | two
tres | trois | three
cuatro | quatre | four
cinco | cinq | five
seis | - | six
siete | sept | seven
ocho | huit | eight
nueve | neuf | nine/new
diez | dix | ten
hola | bonjour | hello/hi/good morning/good day
gracias | merci | thank you/thanks
adiós | au revoir | goodbye/bye
sí | oui | yes
escuela | école | school
árbol | arbre | tree
flor | fleur | flower
montaña | montagne | mountain
ciudad | ville | city/town
puerta | porte | door
ventana | fenêtre | window
jardín | jardin | garden
iglesia | église | church
- | hôpital | hospital
biblioteca | bibliothèque | library
coche | voiture | car
tren | - | train
avión | avion | airplane/aeroplane/plane
barco | bateau | boat/ship
mano | main | hand
cabeza | tête | head
corazón | cœur | heart
ojo | œil | eye
boca | bouche | mouth
sangre | sang | blood
fuego | feu | fire
aire | - | air
tierra | terre | earth/land/ground/soil
cielo | ciel | sky/heaven
mar | mer | sea/ocean
río | rivière | river
isla | île | island
lluvia | pluie | rain
nieve | neige | snow
viento | vent | wind
pájaro | oiseau | bird
pez | poisson | fish
caballo | cheval | horse
vaca | vache | cow
manzana | pomme | apple
naranja | - | orange
queso | fromage | cheese
carne | viande | meat
vino | vin | wine
sal | sel | salt
azúcar | sucre | sugar
huevo | œuf | egg
café | - | coffee
rey | roi | king
reina | reine | queen
hombre | homme | man
mujer | femme | woman/wife
niño | enfant | child/boy/kid
médico | médecin | doctor/physician/medical
profesor | professeur | teacher/professor
amor | amour | love
vida | vie | life
muerte | mort | death/dead
paz | paix | peace
guerra | guerre | war
tiempo | temps | time/weather
mundo | monde | world
trabajo | travail | work/job
dinero | argent | money/silver
música | musique | music
canción | chanson | song
historia | histoire | history/story
libertad | liberté | freedom/liberty
verdad | vérité | truth/true
dormir | - | sleep/to sleep
comer | manger | eat/to eat
beber | boire | drink/to drink
hablar | parler | speak/talk/to speak
leer | lire | read/to read
escribir | écrire | write/to write
cantar | chanter | sing/to sing
invierno | hiver | winter
verano | été | summer
lunes | lundi | monday
domingo | dimanche | sunday
""")


def items(seed: int) -> list[Row]:
    """Ask every word of both languages; they are few enough to need no drawing."""
    return unique(
        asked(language, word, meanings)
        for spanish, french, meanings in WORDS
        for language, word in (("Spanish", spanish), ("French", french))
        if word != "-"
    )


def asked(language: str, word: str, meanings: str) -> Row:
    """Ask one word after the examples; both languages' words of one meaning are a cluster."""
    accepted = meanings.split("/")
    turns = [turn for shot in SHOTS for turn in (user(*shot[:2]), assistant(*shot))]
    cluster = accepted[0].replace(" ", "-")
    name = f"{language.lower()}-{cluster}"
    return {
        "id": name,
        "messages": [*turns, user(language, word)],
        "references": accepted,
        "cluster": cluster,
    }


def user(language: str, word: str) -> dict[str, str]:
    """Ask for the meaning of a word."""
    return {"role": "user", "content": f'What does the {language} word "{word}" mean in English?'}


def assistant(language: str, word: str, meaning: str) -> dict[str, str]:
    """Answer in a sentence."""
    return {"role": "assistant", "content": f'The {language} word "{word}" means "{meaning}".'}
