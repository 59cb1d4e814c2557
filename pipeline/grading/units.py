r"""Units and count nouns behind a number, by tables. Helps `pipeline.grading.equivalence`.

What follows a number is a unit only if it is in the table of units, or a count noun: a word of the
list below, or a plural that the question itself uses. Everything else (hundred, lakh, tenths, less,
x) changes the number or is a factor of a product, and makes the text something other than a number.
"""

import re
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Unit:
    """A unit or count noun in one spelling."""

    name: str = ""  # "" for none; "cm", "square ft", "mi/hour", "°", "$"
    nouns: frozenset[str] = frozenset()  # the words of a count noun: {"red", "apple"}
    is_sure: bool = True  # False for letters that may be variables: 5 m, 3mg
    is_tight: bool = False  # directly behind the number

    def contradicts(self, other: "Unit") -> bool:
        """Whether both are given and differ. Units are not converted: 5 m is not 500 cm."""
        if not self or not other:
            return False
        if self.nouns and other.nouns:
            return not (self.nouns <= other.nouns or other.nouns <= self.nouns)
        return self.name != other.name

    def __bool__(self) -> bool:
        return bool(self.name or self.nouns)


NO_UNIT = Unit()


@lru_cache(4096)
def read_unit(text: str, question: str = "") -> Unit | None:
    """The unit that a text is, as it stands behind a number in plain form; None if it is not one.

    >>> read_unit(" miles per hour").name, read_unit("cm^2").name, read_unit(" lakh")
    ('mi/hour', 'square cm', None)
    >>> read_unit(" gloops") is None, sorted(read_unit(" gloops", "How many gloops?").nouns)
    (True, ['gloop'])
    """
    if not text:
        return NO_UNIT
    if text in _SYMBOLS:
        return Unit(_SYMBOLS[text])
    match = _PHRASE.fullmatch(text)
    if match is None:
        return None
    tokens = re.findall(r"/|[A-Za-z]+", match[2])
    is_tight = not match[1]
    measure = _measure(tokens, (match[3] or "").strip("^{}"), is_tight=is_tight)
    if measure is not None or is_tight or match[3]:
        return measure
    return _count_noun([token.lower() for token in tokens], question)


def spelled_out(text: str) -> str | None:
    r"""Single letters that \text{} marks as units, as words: m/s is meter/second; else None.

    >>> spelled_out(" m/s"), spelled_out("x"), spelled_out("cm")
    ('meter/second', None, None)
    """
    tokens = [token.strip() for token in text.split("/")]
    if not all(token in _UNITS or token in _LETTERS for token in tokens):
        return None
    if not any(token in _LETTERS for token in tokens):
        return None
    return "/".join(_LETTERS.get(token, token) for token in tokens)


def singular(word: str) -> str:
    """The singular of a lower-case noun, by rule and a few exceptions.

    >>> [singular(word) for word in ("apples", "boxes", "cherries", "children", "glass")]
    ['apple', 'box', 'cherry', 'child', 'glass']
    """
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if re.search(r"(?:ch|sh|ss|x|z|o)es$", word) and word not in _PLAIN_OES:
        return word[:-2]
    if len(word) > 2 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


_SYMBOLS = {
    "°": "°", "°C": "°C", "°F": "°F", "$": "$", "€": "€", "£": "£", "¥": "¥", "₹": "₹", "¢": "cent",
    " $": "$", " €": "€", " £": "£", " ¥": "¥", " ₹": "₹", " ¢": "cent", " °C": "°C", " °F": "°F",
}  # fmt: skip
_PHRASE = re.compile(r"( ?)([A-Za-z]+(?:[ /-][A-Za-z]+){0,5})(\^(?:[23]|\{[23]\}))?")

# Each line: the one spelling, then the others, all in the singular and lower case.
_TABLE = """
    $ dollar usd buck | € euro eur | £ gbp quid | ¥ yen jpy yuan rmb | ₹ rupee inr
    cent penny | ° degree deg | rad radian | % percentage
    mm millimeter millimetre | cm centimeter centimetre | meter metre | km kilometer kilometre
    in inch inche | ft foot feet | yd yard | mi mile | unit | acre | hectare
    second sec | millisecond msec | min minute | hour hr | day | week wk | month | year yr
    decade | century | fortnight
    mg milligram | gram gm | kg kilogram kilo kgs | ton tonne | lb pound | oz ounce | stone
    ml milliliter millilitre | cl centiliter | liter litre | gallon gal | quart qt | pint pt
    tablespoon tbsp | teaspoon tsp | cup
    mi/hour mph | km/hour kph kmph | byte | bit | kb kilobyte | mb megabyte | gb gigabyte
    newton | joule | watt | kw kilowatt | kwh | volt | ampere amp | ohm | hertz hz | khz | mhz
    calorie cal | kcal kilocalorie | pascal | kelvin | mole mol | lumen | knot
"""
_UNITS = {
    spelling: line.split()[0] for line in re.split(r"[|\n]", _TABLE) for spelling in line.split()
}
_LETTERS = {
    "m": "meter", "s": "second", "g": "gram", "h": "hour", "l": "liter", "L": "liter",
    "N": "newton", "J": "joule", "W": "watt", "V": "volt", "K": "kelvin",
}  # fmt: skip
# Abbreviations that are a product as well: m g h, m l^2.
_MAY_BE_PRODUCTS = frozenset(("mg", "ml", "gm", "cl", "pt", "mi", "in", "cal", "gal", "amp", "mol"))
_MAY_BE_POWERS = frozenset(["mm", "cm", "meter", "km", "in", "ft", "yd", "mi", "unit", "second"])
_POWERS = {"square": "square", "sq": "square", "cubic": "cubic", "cu": "cubic"}
_POWERS |= {"2": "square", "3": "cubic"}
_PER = frozenset(("per", "/", "a", "an", "each"))


def _measure(tokens: list[str], power: str, *, is_tight: bool) -> Unit | None:
    """A unit of the table, with "square" or "cubic" before it and "per" another behind it."""
    names: list[str] = []
    is_sure, prefix = True, ""
    for i, token in enumerate(tokens):
        word = token.lower()
        if word in _PER and names and not prefix:
            names.append("/")
        elif word in _POWERS and not prefix:
            prefix = _POWERS[word]
        elif (name := _unit_name(token)) and (not names or names[-1] == "/"):
            power_of_last = _POWERS[power] if power and i == len(tokens) - 1 else ""
            if (prefix or power_of_last) and name not in _MAY_BE_POWERS:
                return None
            names.append(f"{prefix or power_of_last} {name}".strip())
            prefix = ""
            is_sure &= token not in _LETTERS and not (is_tight and word in _MAY_BE_PRODUCTS)
        else:
            return None
    while names and names[-1] == "/":  # 5 dollars each
        del names[-1]
    if not names or prefix:
        return None
    return Unit(re.sub(" ?/ ?", "/", " ".join(names)), is_sure=is_sure, is_tight=is_tight)


def _unit_name(token: str) -> str:
    if token in _LETTERS:
        return _LETTERS[token]
    word = token.lower()
    return _UNITS.get(word) or _UNITS.get(singular(word), "")


_IRREGULAR = {
    "children": "child", "people": "person", "men": "man", "women": "woman", "mice": "mouse",
    "geese": "goose", "feet": "foot", "teeth": "tooth", "leaves": "leaf", "knives": "knife",
    "lives": "life", "wives": "wife", "wolves": "wolf", "shelves": "shelf", "loaves": "loaf",
    "calves": "calf", "scarves": "scarf", "oxen": "ox", "dice": "die", "series": "series",
    "species": "species", "buses": "bus", "lenses": "lens", "pies": "pie", "ties": "tie",
    "movies": "movie", "cookies": "cookie", "brownies": "brownie", "vertices": "vertex",
    "puppies": "puppy", "calories": "calorie", "axes": "axis", "classes": "class", "gas": "gas",
    "pence": "penny", "pennies": "penny",
}  # fmt: skip
_PLAIN_OES = frozenset(("shoes", "toes", "canoes"))

# Count nouns of everyday problems, in the singular.
_NOUN_LIST = """
    adult album angle animal answer ant apple app apricot arrangement arrow article baby bag ball
    balloon banana banner bar barrel basket basketball bat battery bead bean bear bed bedroom bee
    beetle bell bench berry bicycle bike bill bird biscuit block blanket blouse boat book bottle
    bouquet bow bowl box boy bracelet branch bread brick broccoli brother brownie brush bucket bug
    building bulb bunch bus bush business butterfly button cabbage cage cake calf call camel
    camera camp can candle candy canoe cap car card carrot cart carton case cat cell chair cheese
    cherry chicken child chip chocolate choice chore church cigarette circle city class classroom
    clerk client clock cloth club coach coat coconut code coin coloring color combination comic
    computer cone container cookie copy corner couch counter country course cow cracker crayon
    crate cricket croissant crow cube cucumber cupcake customer dancer dart date daughter deer
    desk diagonal diamond digit dinner dinosaur dish divisor doctor dog doll donkey donut door
    doughnut dress drink driver drop duck dvd cd eagle edge egg elephant employee engine envelope
    episode error eraser event exam exercise eye face factor factory family fan farm farmer father
    feather female fence file film finger fish flag flat flavor flight floor flower fly folder
    football fork friend frog fruit function game garage garden gift girl glass glove goal goat
    goldfish goose grade grain grandchild granola grape graph grape group guard guest guitar gum
    gumball hamburger hammer hand hat head hen hole home horse hospital hotdog hotel house human
    hut insect instrument integer invitation item jacket jar job joke journey juice key kid
    kilometre kind kitten kiwi knife knight lake lamp laptop lawn leaf leg lemon lesson letter
    level library life light lime line lion list loaf locker lollipop lunch machine magazine male
    man mango map marble marker marshmallow mask match mattress meal meatball medal melon member
    message meter method milk mistake model monkey monster mother mountain mouse movie muffin mug
    multiple mushroom nail necklace neighbor nest newspaper nickel night note notebook novel
    number nurse nut nail onion option orange order outcome outfit oven owl ox pack package packet
    page painting pan pancake paper parent park part partner party passenger path patient pea
    peach peanut pear pebble pen pencil pepper permutation person pet phone photo photograph
    picture pie piece pig pigeon pile pillow pineapple pirate pitcher pizza plane planet plant
    plate player plum pocket poem point pole pony popcorn popsicle portion possibility post poster
    pot potato present price prime prize problem product program pumpkin pupil puppy purse puzzle
    question quilt quiz rabbit raccoon race radio raisin rat recipe record rectangle region
    reptile restaurant ribbon rice ride ring road robot rock roll roof room rope rose roommate
    route row ruler run sack sail salad sale salesman sandwich sausage scarf scene school
    scientist scissors screw sculpture seashell seat section seed sentence series serving session
    set sheep sheet shelf shell ship shirt shoe shop shovel show side sister skirt slice snack
    snail snake snowball snowflake sock soda sofa soldier solution song soup spider spoon sport
    squirrel staff stamp star state station statue step stick sticker stool store story strawberry
    string student subject suit suitcase swan sweater swimmer table tablet tail task taxi teacher
    team term test text threat tick ticket tie tiger tile time tin tip tire toe token tomato tool
    tooth towel tower town toy tractor trail train tray treat tree triangle trip truck trumpet
    tube tulip turkey turn turtle type uniform vacation valentine value van vase vegetable vehicle
    vertex video village violin visit visitor vote voter vowel wagon walk wall wallet walnut watch
    watermelon way whale wheel win window wolf woman word work worker worm zebra zoo
"""
_NOUNS = frozenset(_NOUN_LIST.split())
_LINK_LIST = """
    of per a an each the in for on and with
"""
_LINKS = frozenset(_LINK_LIST.split())
_BEHIND_LIST = """
    old left remaining total altogether away long tall high wide deep
"""
_BEHIND = frozenset(_BEHIND_LIST.split())
# Words that make another number. A plural that the question uses must not be one of them.
_QUANTITY_LIST = """
    zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty
    sixty seventy eighty ninety hundred thousand million billion trillion lakh crore dozen gross
    score grand pair couple half halve third quarter fourth fifth sixth seventh eighth ninth tenth
    twelfth sixteenth twentieth hundredth thousandth millionth billionth mil less more fewer minus
    plus negative positive below above over under not no or nor but than about percent percentage
    double twice triple does always
"""
_QUANTITIES = frozenset(_QUANTITY_LIST.split())


def _count_noun(words: list[str], question: str) -> Unit | None:
    """A count noun with the words around it: red apples, pieces of candy, years old."""
    asked = _question_words(question)
    nouns, is_counted = set(), False
    for i, word in enumerate(words):
        base = singular(word)
        if {word, base} & _QUANTITIES:
            return None
        if base in _NOUNS or (base in _UNITS and len(base) > 2):
            nouns.add(base)
            is_counted = True
        elif (word in _LINKS and 0 < i < len(words) - 1) or (word in _BEHIND and i > 0):
            continue
        elif base in asked:
            nouns.add(base)
            is_counted |= len(word) > 3 and word != base
        else:
            return None
    return Unit(nouns=frozenset(nouns)) if is_counted else None


@lru_cache(512)
def _question_words(question: str) -> frozenset[str]:
    """The words of a question and the singulars of its plurals."""
    words = re.findall(r"[a-z]+", question.lower())
    return frozenset(words) | frozenset(singular(word) for word in words)
