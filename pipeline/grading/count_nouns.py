"""Recognise count nouns behind a number, as in 5 red apples.

A count noun is a word of the list below, or a plural that the question itself uses; other words of
the question and a few links (pieces of candy, years old) may surround it.
"""

import re
from collections.abc import Container, Sequence
from functools import lru_cache


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


def count_noun(words: Sequence[str], question: str, units: Container[str]) -> frozenset[str] | None:
    """The nouns in the words behind a number, in the singular: red apples, pieces of candy.

    Words of units may be among them (cups of flour). None where they are not a count noun.

    >>> sorted(count_noun(["slices", "of", "pizza"], "", {})), count_noun(["lakh"], "", {})
    (['pizza', 'slice'], None)
    """
    in_question = _question_words(question)
    nouns, is_counted = set(), False
    for i, word in enumerate(words):
        base = singular(word)
        if {word, base} & _QUANTITIES:
            return None
        if base in _NOUNS or (base in units and len(base) > 2):
            nouns.add(base)
            is_counted = True
        elif (word in _LINKS and 0 < i < len(words) - 1) or (word in _BEHIND and i > 0):
            continue
        elif base in in_question:
            nouns.add(base)
            is_counted |= len(word) > 2 and word != base
        else:
            return None
    return frozenset(nouns) if is_counted else None


@lru_cache(512)
def _question_words(question: str) -> frozenset[str]:
    """The words of a question and the singulars of its plurals."""
    words = re.findall(r"[a-z]+", question.lower())
    return frozenset(words) | frozenset(singular(word) for word in words)


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
# Words that change the number. A plural that the question uses must not be one of them.
_QUANTITY_LIST = """
    zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty
    sixty seventy eighty ninety hundred thousand million billion trillion lakh crore dozen gross
    score grand pair couple half halve third quarter fourth fifth sixth seventh eighth ninth tenth
    twelfth sixteenth twentieth hundredth thousandth millionth billionth mil less more fewer minus
    plus negative positive below above over under not no or nor but than about percent percentage
    double twice triple does always has was his its yes
"""
_QUANTITIES = frozenset(_QUANTITY_LIST.split())
