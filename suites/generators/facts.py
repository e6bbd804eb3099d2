"""Facts about countries and everyday things, written down once and asked in several forms.

Invariant: a group's answers are of one type, so that any other answer of the group is a fair
wrong choice; where two answers would both be right, only one of them is in the group.
"""

from typing import NamedTuple

from generators.rows import table


class Group(NamedTuple):
    """Facts of one kind: a question with `{}` for the subject, and subject → answer."""

    name: str
    question: str
    answers: dict[str, str]


def pairs(text: str) -> dict[str, str]:
    """Read `subject = answer` cells separated by `;`."""
    cells = (cell.split("=") for cell in text.replace("\n", " ").split(";") if cell.strip())
    return {subject.strip(): answer.strip() for subject, answer in cells}


def inverted(text: str) -> dict[str, str]:
    """Read `answer: subject, subject; …` into subject → answer, each subject with its article."""
    classes = pairs(text.replace(":", "="))
    return {with_article(one.strip()): answer for answer, many in classes.items() for one in many.split(",")}


def with_article(noun: str) -> str:
    """Put `a` or `an` before the noun."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


# country | capital | continent | currency | language; "-" where no single answer is right
COUNTRIES = table("""
France | Paris | Europe | - | French
Germany | Berlin | Europe | - | German
Italy | Rome | Europe | - | Italian
Spain | Madrid | Europe | - | Spanish
Portugal | Lisbon | Europe | - | Portuguese
Greece | Athens | Europe | - | Greek
Austria | Vienna | Europe | - | German
Belgium | Brussels | Europe | - | -
the Netherlands | Amsterdam | Europe | - | Dutch
Ireland | Dublin | Europe | - | -
Finland | Helsinki | Europe | - | Finnish
Sweden | Stockholm | Europe | krona | Swedish
Norway | Oslo | Europe | krone | Norwegian
Denmark | Copenhagen | Europe | krone | Danish
Iceland | Reykjavik | Europe | krona | Icelandic
Poland | Warsaw | Europe | zloty | Polish
Hungary | Budapest | Europe | forint | Hungarian
the Czech Republic | Prague | Europe | koruna | Czech
Romania | Bucharest | Europe | leu | Romanian
Bulgaria | Sofia | Europe | - | Bulgarian
Ukraine | Kyiv | Europe | hryvnia | Ukrainian
Switzerland | Bern | Europe | franc | -
the United Kingdom | London | Europe | pound | English
Albania | Tirana | Europe | lek | Albanian
Serbia | Belgrade | Europe | dinar | Serbian
Croatia | Zagreb | Europe | - | Croatian
Russia | Moscow | - | ruble | Russian
Turkey | Ankara | - | lira | Turkish
China | Beijing | Asia | yuan | Mandarin
Japan | Tokyo | Asia | yen | Japanese
South Korea | Seoul | Asia | won | Korean
India | New Delhi | Asia | rupee | -
Pakistan | Islamabad | Asia | rupee | -
Nepal | Kathmandu | Asia | rupee | Nepali
Bangladesh | Dhaka | Asia | taka | Bengali
Thailand | Bangkok | Asia | baht | Thai
Vietnam | Hanoi | Asia | dong | Vietnamese
Indonesia | Jakarta | Asia | rupiah | Indonesian
Malaysia | Kuala Lumpur | Asia | ringgit | Malay
the Philippines | Manila | Asia | peso | -
Mongolia | Ulaanbaatar | Asia | tugrik | Mongolian
Iran | Tehran | Asia | rial | Persian
Iraq | Baghdad | Asia | dinar | Arabic
Israel | Jerusalem | Asia | shekel | Hebrew
Saudi Arabia | Riyadh | Asia | riyal | Arabic
Jordan | Amman | Asia | dinar | Arabic
Lebanon | Beirut | Asia | pound | Arabic
Cambodia | Phnom Penh | Asia | riel | Khmer
Egypt | Cairo | Africa | pound | Arabic
Morocco | Rabat | Africa | dirham | Arabic
Algeria | Algiers | Africa | dinar | Arabic
Tunisia | Tunis | Africa | dinar | Arabic
Nigeria | Abuja | Africa | naira | English
Ghana | Accra | Africa | cedi | English
Kenya | Nairobi | Africa | shilling | -
Ethiopia | Addis Ababa | Africa | birr | Amharic
Senegal | Dakar | Africa | franc | French
Uganda | Kampala | Africa | shilling | -
Angola | Luanda | Africa | kwanza | Portuguese
Zambia | Lusaka | Africa | kwacha | English
the United States | Washington | North America | dollar | English
Canada | Ottawa | North America | dollar | -
Mexico | Mexico City | North America | peso | Spanish
Cuba | Havana | North America | peso | Spanish
Jamaica | Kingston | North America | dollar | English
Brazil | Brasília | South America | real | Portuguese
Argentina | Buenos Aires | South America | peso | Spanish
Chile | Santiago | South America | peso | Spanish
Peru | Lima | South America | sol | Spanish
Colombia | Bogotá | South America | peso | Spanish
Venezuela | Caracas | South America | bolívar | Spanish
Uruguay | Montevideo | South America | peso | Spanish
Ecuador | Quito | South America | dollar | Spanish
Australia | Canberra | Oceania | dollar | English
New Zealand | Wellington | Oceania | dollar | English
""")


def country_group(name: str, question: str, column: int) -> Group:
    """Ask one column of the countries' table."""
    return Group(name, question, {row[0]: row[column] for row in COUNTRIES if row[column] != "-"})


CAPITAL = country_group("capital", "What is the capital of {}?", 1)
CONTINENT = country_group("continent", "On which continent is {}?", 2)
CURRENCY = country_group("currency", "What is the currency of {}?", 3)
LANGUAGE = country_group("language", "What is the main language spoken in {}?", 4)

SYMBOL = Group(
    "symbol",
    "What is the chemical symbol for {}?",
    pairs("""
oxygen = O; hydrogen = H; carbon = C; nitrogen = N; gold = Au; silver = Ag; iron = Fe; copper = Cu; sodium
= Na; calcium = Ca; helium = He; lead = Pb; zinc = Zn; tin = Sn; chlorine = Cl; aluminium = Al; magnesium
= Mg; mercury = Hg; neon = Ne; sulphur = S
"""),
)

YOUNG = Group(
    "young",
    "What is a young {} called?",
    pairs("""
dog = puppy; cat = kitten; cow = calf; horse = foal; sheep = lamb; goat = kid; chicken = chick; duck =
duckling; bear = cub; deer = fawn; pig = piglet; frog = tadpole; swan = cygnet; kangaroo = joey; goose =
gosling; owl = owlet
"""),
)

LANDMARK = Group(
    "landmark",
    "In which country is {}?",
    pairs("""
the Eiffel Tower = France; the Colosseum = Italy; the Great Wall = China; the Taj Mahal = India; Machu
Picchu = Peru; the Statue of Liberty = the United States; Mount Fuji = Japan; the Acropolis = Greece; the
Kremlin = Russia; Stonehenge = England; the Sydney Opera House = Australia; the Brandenburg Gate =
Germany; the Great Pyramid of Giza = Egypt; Petra = Jordan; Angkor Wat = Cambodia; the Alhambra = Spain;
Toronto = Canada; Shanghai = China; Istanbul = Turkey; Rio
de Janeiro = Brazil; Munich = Germany; Milan = Italy; Barcelona =
Spain; Lagos = Nigeria; Osaka = Japan; Mumbai = India; the city of
Marseille = France; Cape Town = South Africa
"""),
)

AUTHOR = Group(
    "author",
    "Who wrote {}?",
    pairs("""
Hamlet = Shakespeare; Pride and Prejudice = Jane Austen; Oliver Twist = Charles Dickens; War and Peace =
Tolstoy; Don Quixote = Cervantes; the Odyssey = Homer; The Hobbit = Tolkien; Frankenstein = Mary Shelley;
Moby Dick = Herman Melville; Faust = Goethe; The Divine Comedy = Dante; Dracula = Bram Stoker; Animal Farm
= George Orwell; Adventures of Huckleberry Finn = Mark Twain; Crime and Punishment = Dostoevsky; The Old
Man and the Sea = Hemingway; Les Misérables = Victor Hugo; The Raven = Edgar Allan Poe
"""),
)

SCIENTIST = Group(
    "scientist",
    "Who is known for {}?",
    pairs("""
the theory of relativity = Einstein; the laws of motion = Newton; the theory of evolution = Darwin; the
discovery of penicillin = Fleming; the discovery of radium = Marie Curie; inventing the telephone = Bell;
painting the Mona Lisa = Leonardo da Vinci; the Fifth Symphony = Beethoven; inventing the light bulb =
Edison; inventing the printing press = Gutenberg; the first flight in an aeroplane = the Wright brothers;
painting The Starry Night = Van Gogh; the periodic table = Mendeleev; the vaccine against rabies = Pasteur
"""),
)

OPPOSITE = Group(
    "opposite",
    "What is the opposite of {}?",
    pairs("""
hot = cold; big = small; up = down; day = night; fast = slow; happy = sad; open = closed; light = dark;
old = young; wet = dry; rich = poor; strong = weak; full = empty; left = right; early = late; hard = soft;
long = short; near = far; clean = dirty; high = low; loud = quiet; true = false; thick = thin; sweet =
sour; war = peace; love = hate; first = last; inside = outside; summer = winter; buy = sell
"""),
)

ANIMAL = Group(
    "animal",
    "What kind of animal is {}?",
    inverted("""
mammal: dolphin, whale, bat, elephant, lion, rabbit, cow; bird: penguin, eagle, sparrow, owl, parrot,
robin, pigeon; fish: salmon, tuna, trout, shark, cod; reptile: lizard, snake, crocodile, turtle; insect:
beetle, butterfly, mosquito, grasshopper, bee; amphibian: frog, toad, salamander
"""),
)

THING = Group(
    "thing",
    "What kind of thing is {}?",
    inverted("""
fruit: banana, pear, peach, mango, strawberry; vegetable: carrot, cabbage, potato, turnip; tool: hammer,
screwdriver, wrench, chisel; musical instrument: violin, trumpet, piano, flute, drum; vehicle: truck, bus,
motorcycle, tractor; piece of clothing: shirt, jacket, skirt, sweater; piece of furniture: table, sofa,
wardrobe, bookcase; flower: rose, tulip, daffodil, daisy
"""),
)

DISH = Group(
    "dish",
    "Which country does {} come from?",
    pairs("""
sushi = Japan; pizza = Italy; the croissant = France; the taco = Mexico; kimchi = Korea; paella = Spain;
the bratwurst = Germany; haggis = Scotland; borscht = Ukraine; goulash = Hungary; moussaka = Greece; maple
syrup = Canada; the samosa = India; feijoada = Brazil
"""),
)

JOB = Group(
    "job",
    "What do you call a person who {}?",
    pairs("""
bakes bread = a baker; flies an aeroplane = a pilot; teaches at a school = a teacher; puts out fires = a
firefighter; repairs water pipes = a plumber; writes books = an author; cuts hair = a barber; looks after
teeth = a dentist; grows crops = a farmer; catches fish = a fisherman; designs buildings = an architect;
sells meat = a butcher; paints pictures = an artist; plays in a film = an actor; treats sick animals = a
vet; studies the stars = an astronomer; takes photographs = a photographer; serves food in a restaurant =
a waiter; makes furniture = a carpenter; travels in space = an astronaut
"""),
)

COLOUR = Group(
    "colour",
    "What colour is {}?",
    pairs("""
a ripe banana = yellow; grass = green; snow = white; coal = black; a ripe tomato = red; a clear sky =
blue; a carrot = orange; blood = red; milk = white; a lemon = yellow; chocolate = brown; an emerald =
green; a ruby = red; a sapphire = blue; a crow = black; a flamingo = pink; a stop sign = red; a pumpkin =
orange
"""),
)

COUNT = Group(
    "count",
    "How many {}?",
    pairs("""
days are in a week = 7; months are in a year = 12; hours are in a day = 24; minutes are in an hour = 60;
seconds are in a minute = 60; legs does a spider have = 8; legs does an insect have = 6; sides does a
triangle have = 3; sides does a hexagon have = 6; wheels does a bicycle have = 2; wheels does a car have =
4; legs does a dog have = 4; letters are in the English alphabet = 26; days are in a leap year = 366;
cents are in a dollar = 100; years are in a century = 100; years are in a decade = 10; centimetres are in
a metre = 100; degrees are in a circle = 360; degrees are in a right angle = 90; strings does a violin
have = 4; arms does an octopus have = 8; items are in a dozen = 12; planets are in the solar system = 8;
continents are there = 7; fingers are on one hand = 5
"""),
)

BODY = Group(
    "body",
    "Which part of the body is used to {}?",
    pairs("""
pump blood = heart; see = eyes; hear = ears; smell = nose; chew = teeth; think = brain; breathe air =
lungs; taste = tongue; digest food = stomach; hold a pen = hand; kick a ball = foot; filter the blood =
kidneys
"""),
)

SCIENCE = Group(
    "science",
    "What is {}?",
    pairs("""
the star at the centre of the solar system = the Sun; the planet closest to the Sun = Mercury; the largest
planet in the solar system = Jupiter; the planet known as the red planet = Mars; the planet with the most
famous rings = Saturn; the natural satellite of the Earth = the Moon
"""),
)

USSTATE = Group(
    "usstate",
    "What is the capital of the state of {}?",
    pairs("""
Texas = Austin; Massachusetts = Boston; Georgia = Atlanta; Colorado = Denver; Arizona = Phoenix;
California = Sacramento; Hawaii = Honolulu; Tennessee = Nashville; Ohio = Columbus; Florida = Tallahassee;
New York = Albany; Oregon = Salem; Minnesota = Saint Paul; Indiana = Indianapolis; Utah = Salt Lake City;
Virginia = Richmond; Alaska = Juneau; Iowa = Des Moines
"""),
)

HOME = Group(
    "home",
    "Where does {} usually live?",
    pairs("""
a fish = in the water; a bee = in a hive; a bird = in a nest; a camel = in the desert; a monkey = in the
jungle; a horse = in a stable; a spider = in a web; a polar bear = in the Arctic; a king = in a palace; a
monk = in a monastery; a prisoner = in a jail; a student = in a dormitory
"""),
)

SOURCE = Group(
    "source",
    "What do we get from {}?",
    pairs("""
a cow = milk; a hen = eggs; a sheep = wool; a bee = honey; an oak tree = acorns; a vineyard = grapes; a
coal mine = coal; a silkworm = silk; a bakery = bread; a library = books; a pharmacy = medicine; a
newspaper = news
"""),
)

GROUPS = (
    *(CAPITAL, CONTINENT, CURRENCY, LANGUAGE, SYMBOL, YOUNG, LANDMARK, AUTHOR, SCIENTIST, OPPOSITE, ANIMAL),
    *(THING, DISH, JOB, COLOUR, COUNT, BODY, SCIENCE, USSTATE, HOME, SOURCE),
)
