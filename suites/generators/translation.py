"""Translation: common English words into Spanish, French, German and Italian, asked in chat.

Invariant: every accepted form of a translation is listed, with and without its article.
"""

from generators.rows import Row, answer_row, table, unique

LANGUAGES = ("Spanish", "French", "German", "Italian")

# English | Spanish | French | German | Italian; several accepted forms separated by `/`, "-" where none is asked
WORDS = table("""
dog | perro | chien | Hund | cane
cat | gato | chat | Katze | gatto
house | casa | maison | Haus | casa
water | agua | eau | Wasser | acqua
bread | pan | pain | Brot | pane
milk | leche | lait | Milch | latte
book | libro | livre | Buch | libro
friend | amigo/amiga | ami/amie | Freund/Freundin | amico/amica
mother | madre/mamá | mère/maman | Mutter | madre/mamma
father | padre/papá | père/papa | Vater | padre/papà
brother | hermano | frère | Bruder | fratello
sister | hermana | sœur/soeur | Schwester | sorella
sun | sol | soleil | Sonne | sole
moon | luna | lune | Mond | luna
day | día | jour/journée | Tag | giorno
night | noche | nuit | Nacht | notte
good | bueno/buena/bien | bon/bonne | gut | buono/buona
red | rojo/roja | rouge | rot | rosso/rossa
green | verde | vert/verte | grün | verde
white | blanco/blanca | blanc/blanche | weiß/weiss | bianco/bianca
black | negro/negra | noir/noire | schwarz | nero/nera
one | uno/una/un | un/une | eins/ein/eine | uno/una/un
two | dos | deux | zwei | due
three | tres | trois | drei | tre
four | cuatro | quatre | vier | quattro
five | cinco | cinq | fünf | cinque
ten | diez | dix | zehn | dieci
hello | hola | bonjour/salut | hallo/guten Tag | ciao/salve
thank you | gracias | merci | danke | grazie
goodbye | adiós/adios | au revoir/adieu | auf Wiedersehen/tschüss | arrivederci/addio
please | por favor | s'il vous plaît/s'il te plaît | bitte | per favore
yes | sí/si | oui | ja | sì/si
tree | árbol | arbre | Baum | albero
flower | flor | fleur | Blume | fiore
street | calle | rue | Straße/Strasse | strada/via
city | ciudad | ville | Stadt | città
school | escuela | école | Schule | scuola
teacher | maestro/maestra/profesor/profesora | professeur/enseignant/enseignante | Lehrer/Lehrerin | insegnante/maestro
car | coche/carro/auto | voiture/auto | Auto/Wagen | macchina/auto
door | puerta | porte | Tür | porta
table | mesa | table | Tisch | tavolo/tavola
hand | mano | main | Hand | mano
head | cabeza | tête | Kopf | testa
heart | corazón | cœur/coeur | Herz | cuore
fire | fuego | feu | Feuer | fuoco
bird | pájaro/ave | oiseau | Vogel | uccello
fish | pez/pescado | poisson | Fisch | pesce
horse | caballo | cheval | Pferd | cavallo
apple | manzana | pomme | Apfel | mela
wine | vino | vin | Wein | vino
cheese | queso | fromage | Käse | formaggio
king | rey | roi | König | re
love | amor | amour | Liebe | amore
man | hombre | homme | Mann | uomo
woman | mujer | femme | Frau | donna
child | niño/niña | enfant | Kind | bambino/bambina
year | año | an/année | Jahr | anno
world | mundo | monde | Welt | mondo
time | tiempo/hora | temps/heure | Zeit | tempo/ora
sea | mar | mer | Meer/See | mare
""")


def items(seed: int) -> list[Row]:
    """Ask every word in every language; the words are few enough to need no drawing."""
    rows = [asked(word, language, forms) for word, *columns in WORDS
            for language, forms in zip(LANGUAGES, columns, strict=True) if forms != "-"]  # fmt: skip
    return unique(rows)


def asked(word: str, language: str, forms: str) -> Row:
    """Ask one word in one language; the word is the cluster."""
    name = f"{word.replace(' ', '-')}-{language.lower()}"
    return answer_row(name, f'What is the {language} word for "{word}"?', forms.split("/"), word.replace(" ", "-"))
