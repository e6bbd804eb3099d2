"""General prompts to ask a base, so that its own answers can be mixed into training.

Invariant: the same prompts in the same order on every machine, and each beginning of them holds as many of
one kind as of another, to one; none is the item of a suite that ships with the package, nor worded like one.
"""

import random
from collections.abc import Mapping
from functools import cache
from string import Formatter
from typing import NamedTuple

EACH = 150  # prompts of a kind


class Kind(NamedTuple):
    """Templates, and what each of their slots may stand for."""

    templates: tuple[str, ...]
    slots: Mapping[str, tuple[str, ...]]


def _lines(text: str) -> tuple[str, ...]:
    return tuple(" ".join(line.split()) for line in text.strip().splitlines())


def _cells(text: str) -> tuple[str, ...]:
    return tuple(" ".join(cell.split()) for cell in text.split(";"))


_SMALL = tuple(map(str, range(2, 8)))
_LARGER = tuple(map(str, range(8, 31)))
_FEW = ("two", "three", "four")
_PEOPLE = _cells("""
    Aylin; Bruno; Chidi; Dora; Elif; Farid; Greta; Hugo; Ines; Jonas; Kemal; Leona; Milan; Nadia; Oskar;
    Priya; Quentin; Rosalind; Stefan; Tova; Ulla; Viktor; Wanda; Yusuf; Zora
""")
_TOPICS = _cells("""
    gardening; cooking at home; long train journeys; public libraries; keeping bees; mountain hiking; board
    games; street markets; learning to swim; home repairs; solar energy; old photographs; writing letters;
    choir singing; bird watching; city parks; baking bread; chess; recycling; saving money; volunteering;
    morning routines; school lunches; local history; modern architecture; open-source software;
    spreadsheets; job interviews; first aid; weather forecasts; public transport; cycling to work;
    houseplants; thunderstorms; rivers; volcanoes; the night sky; tides; earthquakes; glaciers; the water
    cycle; electric cars; bridges; lighthouses; museums; folk music; poetry; theatre; film editing; drawing;
    pottery; knitting; woodworking; marathon running; tennis; good sleep; healthy snacks; team work;
    negotiation; time zones
""")
_SENTENCES = _cells("""
    Our neighbours painted their fence last weekend.; A brown fox hid behind the barn.; Nobody answered when
    the telephone rang.; The chemist delivers on Thursdays.; Two old boats lay upside down on the sand.; My
    grandmother knits scarves for the whole family.; The museum added a room about ships.; Heavy clouds
    gathered over the valley.; Three tired hikers reached the hut.; The orchestra tuned its instruments.;
    Somebody left an umbrella on the tram.; The bakery sold out before lunch.; A small lamp stood beside the
    armchair.; The judges could not agree on a winner.; Fresh paint takes a day to dry.; The goalkeeper
    slipped on the wet grass.; Her suitcase was heavier than it looked.; The candle burned all evening.; An
    owl called from the old oak.; The engineer checked every bolt twice.
""")

KINDS: Mapping[str, Kind] = {
    "open questions": Kind(
        _lines("""
            Give two tips for someone who wants to learn about {topic}.
            Explain in two sentences why people care about {topic}.
            What should a beginner know about {topic}? Keep it short.
            Describe {topic} to a child in one or two sentences.
            Name one advantage and one disadvantage of {topic}.
            Suggest a title for an article about {topic}.
            What is a common mistake people make with {topic}?
            How has {topic} changed over the last hundred years? Answer briefly.
            Ask me a good question about {topic}.
            Which tools or materials are useful for {topic}? List a few.
            Give an example of {topic} from daily life.
            Summarise what you know about {topic} in one sentence.
            How would you start a short speech about {topic}?
            What could somebody find difficult about {topic}?
            Recommend a weekend activity that has to do with {topic}.
            Compare {topic} with reading a novel, in one or two sentences.
            What would you tell a visitor from another country about {topic}?
            Is {topic} more fun alone or with others? Give one reason.
            Finish this thought in a few words: the best thing about {topic} is
        """),
        {"topic": _TOPICS},
    ),
    "sums in words": Kind(
        _lines("""
            {a} passengers sit in the tram, and {b} others get on at the market. \
            How many people are in the tram then?
            {a} passengers sit in the tram, and {b} of those get off. How many people remain?
            {who} read {a} pages in the morning and {b} pages in the evening. \
            How many pages did {who} read that day?
            A tank holds {a} litres. {who} pours {b} litres out. What amount stays in the tank?
            The bill was {a} euros and {who} adds a tip of {b} euros. What does {who} pay altogether?
            {who} walked {a} kilometres, then rested, then walked another {b}. How far did {who} walk?
            A rope of {a} metres is cut, and {b} metres are thrown away. How long is the rest of the rope?
            {who} is {a} years old, and a cousin is {b} years younger. What is the age of the cousin?
            There were {a} {goods} on the shelf before {who} put {b} of them into a bag. \
            Count the {goods} on the shelf.
            {who} collected {a} {goods} and {friend} collected {b} {goods}. Together they collected how many?
            It was {a} degrees at noon. By midnight it was {b} degrees colder. What did the thermometer show?
            {who} packs {b} {goods} into each crate and fills {c} crates. How many {goods} were packed?
            The team scored {a} points before the break and {b} after it. Give the final score of the team.
            {who} saved {a} dollars and spent {b} of these on {goods}. How much money remains?
        """),
        {
            "a": _LARGER,
            "b": _SMALL,
            "c": _SMALL,
            "who": _PEOPLE[:12],
            "friend": _PEOPLE[12:],
            "goods": _cells(
                "lemons; tiles; candles; tickets; buttons; bricks; jars; ribbons; nails; postcards"
            ),
        },
    ),
    "numbers": Kind(
        _lines("""
            What is {a} plus {b}?
            Work out {a} minus {b}.
            How much is {b} times {c}?
            Which is larger, {a} or {b}?
            Double the number {a}.
            What number comes right after {a}?
            Which number goes next in this row: {row}?
            Count from {b} to {a}.
            Is {a} an even number?
            Put these numbers in order, smallest first: {a}, {b}, {c}.
            Spell the number {a} as a word.
            Take {b} away from {a} and tell me the result.
        """),
        {
            "a": _LARGER,
            "b": _SMALL,
            "c": tuple(map(str, range(9, 13))),
            "row": tuple(
                ", ".join(str(start + step * i) for i in range(4))
                for step in (4, 6, 7, 9, 20)
                for start in range(3, 13)
            ),
        },
    ),
    "translation": Kind(
        _lines("""
            Translate into English: {foreign}
            What is the English for "{foreign}"?
            Give the English meaning of "{foreign}".
            Somebody said "{foreign}" to me. What did they mean?
            Please translate "{foreign}" for me.
            Translate into {tongue}: {english}
            How do you say "{english}" in {tongue}?
            I need the {tongue} word for "{english}".
            Say "{english}" in {tongue}.
        """),
        {
            "foreign": _cells("""
                Brücke; Schlüssel; Löffel; Regenschirm; Kartoffel; der Hund schläft; ich habe Hunger; guten
                Appetit; cuchara; llave; puente; zapato; cuchillo; la mesa es redonda; me llamo Pedro; tengo
                sed; buenas noches; fourchette; parapluie; chaussure; oreille; la porte est fermée; je suis
                fatigué; à demain; bon voyage; chiave; ponte; scarpa; forchetta; ho fame; buon giorno; dove
                abiti; colher; chave; sapato; obrigado; tengo dos gatos; j'habite à Lyon; el tren llega
                tarde; il fait froid; wo ist der Bahnhof; mi piace
            """),
            "english": _cells("""
                spoon; key; umbrella; shoe; potato; fork; ear; knee; roof; cloud; butter; garlic; good
                evening; see you soon; excuse me; I am tired; where is the station; the soup is hot; happy
                new year; left; right
            """),
            "tongue": ("French", "Spanish", "German", "Italian", "Portuguese"),
        },
    ),
    "short facts": Kind(
        _lines("""
            In a few words: what is {thing} used for?
            Name the {which}.
            Tell me the {which}.
            Which is {rank}, {one}?
            What are {goods} made of?
            Who was {famous}, and what are they remembered for? Be brief.
            In what century did {famous} live?
            Where would you normally find {thing}?
            What does {work} do all day? A short answer is enough.
            What season comes after {season}?
            Complete the saying: {saying}
            True or false: {claim}
        """),
        {
            "thing": _cells("""
                a compass; a thermometer; a ladder; a microscope; an anchor; a telescope; a rudder; a
                kettle; a stapler; a sieve; a corkscrew; a tripod; a stethoscope; a wheelbarrow; a pulley; a
                barometer; a chimney; a funnel; a lighthouse; a magnifying glass; a spirit level; a saddle;
                a trowel
            """),
            "which": _cells("""
                longest river in Africa; highest mountain on Earth; smallest ocean; largest desert; fastest
                land animal; tallest animal; hardest natural mineral; gas that plants take in; metal that is
                liquid at room temperature; force that pulls things to the ground; process by which plants
                make food; boiling point of water; freezing point of water; speed of sound in air, roughly;
                closest star to us after our own; number of players in a football team; number of keys on a
                piano; year in which people first walked on the Moon; language with the most native
                speakers; inventor of the steam engine that bears his name
            """),
            "rank": ("bigger", "heavier", "rarer"),
            "one": _cells("""
                a whale or an elephant; iron or feathers; gold or sand; an ocean or a lake; a planet or a
                moon; a mouse or a rat; a village or a town; a lorry or a van
            """),
            "goods": _cells(
                "windows; candles; bricks; tyres; coins; ropes; bottles; pencils; shoes; raisins"
            ),
            "famous": _cells("""
                Galileo; Cleopatra; Mozart; Gandhi; Columbus; Florence Nightingale; Isaac Newton; Napoleon;
                Copernicus; Confucius; Rembrandt; Ada Lovelace; Archimedes; Marco Polo; Joan of Arc;
                Socrates; Chopin; Magellan; Tesla; Queen Victoria
            """),
            "work": _cells(
                "a judge; a plumber; a nurse; a librarian; a tailor; a beekeeper; a referee; a miner"
            ),
            "season": ("spring", "autumn"),
            "saying": _cells("""
                better late than; actions speak louder than; practice makes; when in Rome, do as; no smoke
                without; the early bird catches; every cloud has a; rome was not built in; where there is a
                will, there is
            """),
            "claim": _cells("""
                sound travels faster than light; bats are blind; the Nile is in Asia; ice floats on water;
                spiders are insects; the heart is a muscle; bamboo is a grass; penguins can fly; lightning
                is hot; Iceland is an island; a tomato is a fruit; wood sinks in oil; goldfish have no
                memory; rust is iron and oxygen
            """),
        },
    ),
    "lists": Kind(
        _lines("""
            Give me {few} {things} as bullet points.
            Write down {few} {things}, one per line.
            I need {few} {things}. Use a dash in front of each.
            Enumerate {few} {things} with 1), 2) and so on.
            Mention {few} {things} in a single line with commas between them.
            Make a table with {few} {things} and one property of each.
            Which {few} {things} come to your mind first?
            List some {things} in alphabetical order.
            Only one of them, please: a good example of {things}.
        """),
        {
            "few": _FEW,
            "things": _cells("""
                fish; flowers; planets; metals; spices; desserts; vehicles; hobbies; rivers; languages;
                insects; shapes; kitchen utensils; feelings; school subjects; pieces of furniture; dances;
                card games; trees; fabrics; kinds of weather; kinds of shoes; breakfast foods; office
                supplies; things to pack for the beach
            """),
        },
    ),
    "form": Kind(
        _lines("""
            Put this into upper case: {sentence}
            Shout it, all letters large: {sentence}
            Copy the following text exactly: {sentence}
            Say the same in other words: {sentence}
            Turn it into a question: {sentence}
            Make it negative: {sentence}
            How many words does this have? {sentence}
            Write the last word of this only: {sentence}
            Say it in the future tense: {sentence}
            Add one adjective: {sentence}
            Continue with one more sentence: {sentence}
            Put quotation marks around it: {sentence}
            Use "grey" for one of the words here: {sentence}
        """),
        {"sentence": _SENTENCES},
    ),
    "short texts": Kind(
        _lines("""
            Write a single sentence that mentions {noun} and {other}.
            Begin with "Yesterday" and tell me in a sentence about {noun}.
            Begin with "Perhaps" and say something about {noun}.
            In no more than eight words, what is {noun}?
            Answer with one word: what goes well with {noun}?
            Yes or no: have you ever heard of {noun}?
            Compose a rhyme of two lines on {noun}.
            Pose a riddle whose solution is {noun}.
            What might somebody ask about {noun}? End with a question mark.
            Three sentences on {noun}, please, no more.
            Invent a slogan for {noun}, with an exclamation mark.
            Say something kind about {noun}.
        """),
        {
            "noun": _cells("""
                a lantern; a violinist; the desert; a harbour; an elevator; a penguin; pancakes; a wooden
                spoon; a snowman; the subway; a hedgehog; autumn leaves; a mirror; a dentist; a kite; a
                pyramid; cinnamon
            """),
            "other": _cells("""
                a bucket; a whistle; an island; a scarf; a tunnel; a drum; the fog; a ladder; a parrot;
                honey; a ticket
            """),
        },
    ),
    "messages": Kind(
        _lines("""
            Congratulate {who} on {event} in a sentence.
            Invite {who} to {event}, briefly.
            Thank {who} for helping with {event}.
            Apologise to {who}: you missed {event}.
            What could I write on a card to {who} about {event}?
            Open an e-mail to {who} about {event}. The first sentence is enough.
            Greet {who}, who has just come back from {event}.
            Remind {who} politely of {event}.
            {who} is nervous about {event}. Say something encouraging.
        """),
        {
            "who": _PEOPLE,
            "event": _cells("""
                the wedding; the driving test; the concert; the move to a new flat; the chess tournament;
                the picnic; the exam; the first day at work; the garden party; the anniversary; the half
                marathon; the long journey
            """),
        },
    ),
    "data and code": Kind(
        _lines("""
            Make a JSON object of this: {who}, {a} years, likes {food}.
            As JSON with "title" and "price": a {item} for {a} euros.
            One line of CSV, please: {who}, {food}, {a}
            Which keys does this JSON have? {{"{key}": {a}, "{other}": {b}}}
            What does Python print for print({a} + {b})?
            What does len("{food}") give in Python?
            Define a Python function {key}_of(x) in two lines.
            Give a Python expression for the {measure} of the list xs.
            How do I make an empty list named {key} in Python?
            Write a line of JavaScript that logs "{food}".
            An SQL query that selects {key} from the table {other}, nothing else.
            Which shell command {task}? Just the command.
            What is wrong with this line of Python? print("{food}"
            Assign {a} to the variable {key} in Python.
        """),
        {
            "who": _PEOPLE,
            "a": _LARGER,
            "b": _SMALL,
            "food": _cells("soup; mango; rice; toast; olives; pasta; salad; walnuts"),
            "item": _cells("teapot; helmet; backpack; notebook; blanket; radio"),
            "key": _cells("total; length; colour; weight; score; speed; depth"),
            "other": _cells("orders; rooms; parcels; visits; games"),
            "measure": _cells("minimum; sum; length; last element; mean; second item"),
            "task": _cells(
                "lists files; shows the current folder; deletes a file; makes a folder; copies a file"
            ),
        },
    ),
    "reading": Kind(
        _lines("""
            {passage} Who is this about?
            {passage} Where does it happen?
            {passage} What is it that they did? Use your own words.
            {passage} When was that?
            Read this and give it a headline: {passage}
            Shorten to five words or so: {passage}
            {passage} Was anybody unhappy? Say why you think so.
            {passage} What will probably come next?
            {passage} Pick out every name.
            Correct any mistakes in this text: {passage}
        """),
        {
            "passage": _lines("""
                On Tuesday Farid repaired the gate of the old mill, and Greta brought him tea.
                Ines missed her flight from Zurich because the taxi broke down at six in the morning.
                In 1923 a storm took the roof off the school in Harlow, but the pupils were at home.
                Oskar bought a second-hand cello in a small shop near the station and plays it every night.
                The ferry to the island was full, so Priya and Hugo waited two hours at the pier.
                Wanda found a purse in the park, took it to the police, and got a cake as a reward.
                Last winter the lake froze, and the whole village skated on it until March.
                Kemal forgot the oven, and the smoke alarm woke up everyone in the house.
                Every Sunday Tova walks to the lighthouse with her sister and counts the ships.
                Dr Milan opened her practice in the valley after ten years at the hospital in town.
                Bruno painted the kitchen orange while Dora was away, and she laughed when she came home.
                At the fair in Soria, Jonas won a goldfish that he named Captain.
                Leona planted forty trees behind the barn in April, and half of them survived the drought.
                The band lost its drummer before the festival, so Yusuf learned the songs in three days.
                Elif and Viktor moved the piano up five floors by themselves last Saturday.
                The bus driver waited for Ulla, who was running down the hill with her shopping.
                Chidi baked his first loaf on Monday; it was as hard as a stone.
                After the flood, Stefan lived with his aunt in Graz for a whole summer.
                Zora wrote to the newspaper about the noise at night, and a week later it stopped.
                Nadia taught the parrot to say good morning, which it now says at midnight.
            """)
        },
    ),
    "everyday help": Kind(
        _lines("""
            How do I {chore}?
            What do I need to {chore}?
            My plan is to {chore} tomorrow. Any advice?
            How long does it take to {chore}?
            Can I {chore} without spending money?
            First step only: how do I {chore}?
            Is it hard to {chore}?
            I have never managed to {chore}. What am I doing wrong?
            Explain to my son how to {chore}.
            What is the easiest way to {chore}?
        """),
        {
            "chore": _cells("""
                iron a shirt; boil an egg; wrap a present; change a light bulb; fold a fitted sheet; clean a
                window; tie a bow tie; descale a coffee machine; read a map; write a complaint; plan a
                birthday party; learn ten new words a day; make a budget; wake up earlier; carve a pumpkin;
                sharpen a knife; patch a bicycle tyre; store apples; repot a cactus; clear a drain; book a
                table; back up my photos; remember names
            """)
        },
    ),
}


@cache
def general_prompts() -> tuple[str, ...]:
    """Return every prompt once, in one fixed order: a shuffled one of each kind, then the next of each."""
    kinds = [_fill_kind(name, kind) for name, kind in KINDS.items()]
    return tuple(prompt for of_each in zip(*kinds, strict=True) for prompt in of_each)


def _fill_kind(name: str, kind: Kind) -> list[str]:
    """Fill a kind's templates in turn, until there are enough different prompts."""
    rng = random.Random(f"general prompts/{name}")
    made: dict[str, None] = {}
    while len(made) < EACH:
        for template in rng.sample(kind.templates, len(kind.templates)):
            slots = sorted({slot for _, slot, *_ in Formatter().parse(template) if slot})
            made[template.format(**{slot: rng.choice(kind.slots[slot]) for slot in slots})] = None
    return list(made)[:EACH]
