"""Generated word problems about everyday situations, with one to three steps.

    Tom baked 62 muffins and sold 14. The rest go into boxes of 6. How many boxes are full?
    62-14=48
    48/6=8

Those of `word_problems` follow one quantity through events; here the structure and what is asked
differ: money, time, groups, prices. The templates were written for this module, from the structures
that such problems have (one or two operations, total or difference of two products), not from the
texts of a data set.
"""

import random
from dataclasses import dataclass

from pipeline.data.decomposed import Chain

LARGEST = 250  # result of a step
TRIES = 100  # draws of the other numbers for the same factors and divisors
NAMES = (
    "Ada Alex Amir Anna Ben Bella Carl Chloe Dana David Elif Emma Felix Grace Hana Henry Ivan Jane "
    "Karim Laura Liam Lucy Maria Max Nadia Noah Olga Paul Priya Rosa Sara Simon Tara Theo Uma Will"
)
POOLS = {
    "thing": "balloons beads books bracelets buttons cards coins crayons erasers marbles markers "
    "notebooks paintings pencils photos postcards puzzles ribbons shells stamps stickers toys",
    "food": "apples bagels brownies buns candies carrots cookies cupcakes donuts eggs muffins "
    "oranges pancakes peaches pears plums potatoes rolls sandwiches strawberries tomatoes",
    "box": "bags baskets boxes bundles cartons crates jars packets",
    "people": "children friends neighbors players pupils scouts students visitors",
    "item": "book game hat kite lamp mug puzzle shirt toy umbrella",
}

# (steps, text). In a step, letters are numbers of the text and digits are earlier results.
TEMPLATES = """
a+b | {who} has {a} {thing} at home and {b} at school. How many {thing} does {who} have?
a+b | A farm sold {a} {food} on Friday and {b} on Saturday. How many {food} did it sell on the two days?
a+b | {who} paid ${a} for a {item} and ${b} for a bag. How much did {who} spend?
a+b | {who} is {a} years old. {other} is {b} years older. How old is {other}?
a-b | {who} has {a} {thing}, {b} more than {other}. How many {thing} does {other} have?
a-b | A bus had {a} {people} on it. At a stop {b} got off. How many {people} were still on the bus?
a-b | A {item} costs ${a}. {who} has ${b}. How many more dollars does {who} need?
a-b | {who} has read {b} of the {a} pages of a book. How many pages are left?
a-b | There are {a} {thing} in a drawer, and {b} of them are blue. How many are not blue?
a-b | {who} had {a} {food} in the morning and {b} in the evening. How many {food} were eaten?
a*b | {who} buys {a} {box} with {b} {food} in each. How many {food} is that?
a*b | A ticket costs ${b}. How much do {a} tickets cost?
a*b | {who} runs {b} miles every day. How many miles are that in {a} days?
a*b | A hall has {a} rows of {b} chairs. How many chairs are there?
a/b | {who} puts {a} {thing} into {box}, {b} in each. How many {box} are needed?
a/b | {who} shares {a} {food} equally among {b} {people}. How many does each get?
a/b | {b} tickets cost ${a} together. How much is one ticket?
a/b | {a} {people} form teams of {b}. How many teams are there?
a+b,1/c | {who} picked {a} {food} and {other} picked {b}. They put them into {box} of {c}. How many {box} did they fill?
a+b,1/c | There are {a} boys and {b} girls on a trip. Each van holds {c} of them. How many vans are needed?
a+b,1/c | {who} has {a} old and {b} new photos and puts {c} on each page of an album. How many pages are filled?
a+b,1/c | A shop got {a} red and {b} green {thing} and puts the same number on each of {c} shelves. How many are on a shelf?
a+b,1/c | {who} earned ${a} in May and ${b} in June. A {item} costs ${c}. How many can {who} buy?
a-b,1/c | {who} baked {a} {food} and ate {b}. The rest go into {box} of {c}. How many {box} can {who} fill?
a-b,1/c | {who} had ${a} and spent ${b} on lunch. How many tickets at ${c} each can {who} buy with the rest?
a-b,1/c | Of {a} {people}, {b} are ill today. The others form groups of {c}. How many groups are there?
a-b,1/c | A {item} costs ${a}. {who} has ${b} and saves ${c} every week. How many weeks does {who} have to save?
a-b,1/c | {who} had {a} pages to read, read {b} on the first day, and reads {c} a day from then on. How many more days does it take?
a-b,1/c | A cook had {a} {food}. {b} were bad, and the others make {c} equal plates. How many are on a plate?
a-b,1/c | {who} washed {b} of {a} dishes. {c} friends share the remaining ones equally. How many does each friend wash?
a+b,1*c | {who} sold {a} small and {b} large {food} for ${c} each. How much money did {who} get?
a+b,1*c | {who} bought {a} {box} of red and {b} {box} of blue {thing}. Each holds {c}. How many {thing} are there?
a+b,1*c | {who} practises {a} minutes in the morning and {b} in the evening. How many minutes is that in {c} days?
a+b,1*c | {a} girls and {b} boys get {c} {thing} each. How many {thing} are handed out?
a+b,1*c | {who} walks {a} miles to work and {b} miles to the gym every day. How many miles does {who} walk in {c} days?
a-b,1*c | {who} had {a} {box} of {food} and gave {b} away. Each has {c} {food}. How many {food} are left?
a-b,1*c | {who} has to paint {a} rooms and has painted {b}. A room takes {c} hours. How many hours are left?
a-b,1*c | A test has {a} questions of {c} points each. {who} misses {b} of them. How many points does {who} get?
a-b,1*c | {a} cars stood in a lot and {b} drove away. A wash for a car costs ${c}. What do the washes of the others cost?
a*b,1+c | {who} buys {a} {box} of {b} {thing} and has {c} {thing} already. How many {thing} does {who} have now?
a*b,1+c | {who} reads {b} pages a day for {a} days and then {c} more on Sunday. How many pages is that?
a*b,1+c | A taxi costs ${c} and ${b} for every mile. What does a ride of {a} miles cost?
a*b,1+c | {a} tables have {b} seats each, and there are {c} stools. How many people can sit down?
a*b,1-c | {who} baked {a} trays of {b} {food} and sold {c}. How many {food} are left?
a*b,1-c | {who} works {a} hours for ${b} an hour and spends ${c}. How many dollars are left?
a*b,1-c | A hall has {a} rows of {b} chairs. {c} are broken. How many chairs can be used?
a*b,1-c | {who} has {a} {box} of {b} {thing}. {other} has {c} {thing}. How many more does {who} have than {other}?
a*b,c-1 | A book has {c} pages. {who} reads {b} pages a day for {a} days. How many pages are left?
a*b,c-1 | {who} has ${c} and buys {a} tickets for ${b} each. How many dollars are left?
a*b,c-1 | {who} had {c} {food} and gave {b} to each of {a} {people}. How many {food} are left?
a*b,1/c | {who} shares {a} {box} of {b} {food} equally among {c} {people}. How many does each get?
a*b,1/c | {who} sells {a} {thing} for ${b} each. A {item} costs ${c}. How many can {who} buy with the money?
a*b,1*c | A house has {a} floors with {b} rooms, and every room has {c} windows. How many windows are there?
a*b,1*c | {who} gives {a} {people} {b} {box} each, with {c} {thing} in every one. How many {thing} are given?
a/b,1+c | {who} and others share {a} {food} so that each of {b} people gets the same. Then {who} gets {c} more. How many does {who} have?
a/b,1-c | {who} packs {a} {thing} into {box} of {b} and gives {c} {box} away. How many {box} are left?
a/b,1*c | {b} {thing} cost ${a}. How much do {c} {thing} cost at that price?
a/b,1*c | A machine fills {a} {box} in {b} hours. How many does it fill in {c} hours?
a+b,1-c | {who} had {a} {thing}, got {b} as a present, and lost {c}. How many {thing} does {who} have?
a+b,1-c | {a} {people} were in a pool. {b} came and {c} left. How many were in the pool then?
a+b,1-c | {who} saved ${a} and {other} saved ${b}. Together they bought a present for ${c}. How much is left?
a-b,1+c | {who} had ${a}, spent ${b}, and then got ${c} for work. How much money does {who} have?
a-b,1+c | A shelf had {a} books. {b} were lent out and {c} new ones came. How many books are on the shelf?
a-b,1-c | {who} had {a} {food}, ate {b}, and gave {c} to {other}. How many are left?
a-b,1-c | Of {a} {thing}, {b} are red and {c} are green. How many have another color?
a+b,1+c | {who} found {a} {thing} on Monday, {b} on Tuesday and {c} on Wednesday. How many is that together?
a+b,a+1 | {who} has {a} {thing}. {other} has {b} more than {who}. How many do they have together?
a-b,a+1 | {who} has {a} {thing}. {other} has {b} fewer than {who}. How many do they have together?
a*b,a+1 | {who} has {a} {thing}. {other} has {b} times as many. How many do they have together?
a*b,1-a | {who} is {a} years old. {other} is {b} times as old. How many years older is {other}?
a+b,1/c | For a party {who} made {a} small and {b} large {food}. If every guest takes {c}, for how many guests is that enough?
a+b,1/c | {who} collected {a} cans and {other} collected {b}. A shop pays one dollar for every {c} cans. How many dollars do they get together?
a+b,1/c | A gardener has {a} roses and {b} tulips and plants the same number in each of {c} beds. How many flowers are in a bed?
a+b,1/c | {who} does {a} pages of math and {b} pages of reading homework at {c} pages an hour. How many hours does it take?
a-b,1/c | {who} had {a} {thing} and sold {b} of them. If {c} fit on a shelf, how many shelves are needed for the others?
a-b,1/c | A tank held {a} liters. After {b} liters were used, the rest was poured into cans of {c} liters. How many cans were filled?
a-b,1/c | {who} bought a bag of {a} seeds, and {b} did not grow. The plants stand in {c} equal rows. How many plants are in a row?
a-b,1/c | There were {a} {people} in line for a ride. {b} went home, and every car takes {c} of those who stayed. How many cars are filled?
a-b,1/c | {who} has ${a} but must keep ${b} for the bus. How many {item}s at ${c} each can {who} afford?
a-b,1/c | A rope is {a} meters long. {who} cuts off {b} meters and cuts the rest into pieces of {c} meters. How many pieces does {who} get?
a-b,1/c | A player scored {b} points by throws and the other points by goals of {c} points each, {a} points in all. How many goals were there?
a+b,1*c | For each of {c} cakes {who} uses {a} cups of flour and {b} cups of milk. How many cups is that in all?
a+b,1*c | A ride costs ${c}. {who} rides {a} times and {other} {b} times. How much do they pay together?
a+b,1*c | In a game {who} found {a} gold and {b} silver coins, and each is worth {c} points. What is the score?
a+b,1*c | If {a} adults and {b} children go to a show and a seat costs ${c}, how much do they pay?
a+b,1*c | {who} plants {a} rows of beans and {b} rows of corn with {c} plants in each row. How many plants is that?
a+b,1*c | A truck brought {a} crates before noon and {b} after noon. Each weighs {c} kilograms. How many kilograms did it bring?
a-b,1*c | {who} planned to work {a} hours but was ill for {b}. At ${c} an hour, how much did {who} earn?
a-b,1*c | A box had {a} {thing}, and {b} were sold before today. {who} sells the rest today for ${c} each. How much money is that?
a-b,1*c | Of {a} invited {people}, {b} cannot come. Each of the others gets {c} {food}. How many {food} are needed?
a-b,1*c | {who} has {a} lawns to mow and forgets {b}. Each lawn pays ${c}. How much does {who} earn?
a-b,1*c | A row has {a} seats, but {b} are taken. If a free seat costs ${c}, what do all the free ones cost?
a*b,1+c | A class has {a} groups of {b} {people} and {c} more who work alone. How many are in the class?
a*b,1+c | {who} saves ${b} each week. After {a} weeks, a present of ${c} is added. How much money is there?
a*b,1+c | {who} swims {b} laps on each of {a} days and {c} laps on the last day. How many laps are that altogether?
a*b,1+c | An order of {a} {box} with {b} {thing} each also has {c} free ones. How many {thing} arrive?
a*b,1-c | {who} bought {a} {box} of {b} {food}, and {c} were eaten at once. How many are there now?
a*b,1-c | A theater has {a} rows with {b} seats. If {c} people are inside, how many seats are empty?
a*b,1-c | {who} takes {b} photos on each of {a} days of a trip and later deletes {c}. How many photos are kept?
a*b,1-c | {a} teams of {b} {people} arrive, but {c} of these only watch. How many play?
a*b,c-1 | A pool needs {c} buckets of water. {who} carries {b} buckets an hour for {a} hours. How many buckets are missing?
a*b,c-1 | {who} wants to sell {c} {food} and sells {a} {box} of {b}. How many more must be sold?
a*b,c-1 | {a} friends eat {b} {food} each. There were {c} at first. How many are still there?
a*b,1/c | {who} reads {b} pages a day and finishes a book in {a} days. How many days would it take with {c} pages a day?
a*b,1/c | {a} {box} of {b} {thing} are put on {c} shelves, the same number on each. How many are on one shelf?
a*b,1*c | {who} does {a} exercises {b} times a day. How many exercises is that in {c} days?
a/b,1+c | {who} puts {a} {thing} into {box} of {b} and has {c} full {box} from last year. How many full {box} are there now?
a/b,1-c | {b} friends share a bill of ${a} equally. {who} has a coupon for ${c}. How much does {who} pay?
a/b,1-c | {a} {food} are shared among {b} {people}. {who} is one of them and eats {c}. How many does {who} still have?
a/b,1*c | {who} types {a} words in {b} minutes. How many words does {who} type in {c} minutes?
a/b,1/c | {who} cuts {a} {food} for {b} tables of {c} people each. How many does each person get?
a+b,1-c | {who} wants {c} fewer {thing} than {a} red and {b} blue ones together. How many is that?
a+b,1-c | A train had {a} passengers. At one stop {b} got on, and at the next {c} got off. How many passengers were there then?
a-b,1+c | {who} weighed {a} kilograms, lost {b} in spring and gained {c} in winter. What does {who} weigh now?
a-b,1-c | A string of {a} lights has {b} broken lights, and {c} others are off. How many are on?
a+b,1+c | {who} paid ${a} for shoes, ${b} for a coat and ${c} for a {item}. How much is that in total?
a*b,c*d,1+2 | {who} buys {a} {thing} for ${b} each and {c} {food} for ${d} each. How much does {who} pay?
a*b,c*d,1+2 | {a} {box} hold {b} {food} each, and {c} others hold {d} each. How many {food} are there?
a*b,c*d,1-2 | {who} earns ${b} an hour for {a} hours and spends ${d} a day for {c} days. How many dollars are left?
a*b,c*d,1-2 | {who} made {a} {box} of {b} {thing}. {c} {people} took {d} {thing} each. How many are left?
a+b,1*c,2-d | {who} sold {a} {food} on Monday and {b} on Tuesday for ${c} each and paid ${d} for flour. How much is left?
a-b,1*c,2+d | {who} had {a} {box} and lost {b}. Each has {c} {thing}, and {d} {thing} lie on the table. How many {thing} are there?
a*b,1-c,2/d | {who} baked {a} trays of {b} {food}, ate {c}, and shares the rest among {d} {people}. How many does each get?
a*b,1+c,2/d | {who} has {a} {box} of {b} {thing} and {c} single ones, and shares all among {d} {people}. How many does each get?
a+b,1-c,2/d | {a} girls and {b} boys signed up, but {c} did not come. The others form teams of {d}. How many teams are there?
a-b,1-c,2*d | {who} had {a} {thing}, lost {b}, gave away {c}, and sells the rest for ${d} each. How much money does {who} get?
a/b,1-c,2*d | {who} packs {a} {food} into {box} of {b}, keeps {c} {box}, and sells the others for ${d} each. How much money does {who} get?
a+b,1+c,2/d | {who} has {a} red, {b} blue and {c} white {thing} and puts them into {box} of {d}. How many {box} are full?
"""  # noqa: E501


@dataclass(frozen=True)
class Template:
    """The operations of a scenario and its text."""

    steps: tuple[tuple[str, str, str], ...]  # (left, operator, right)
    text: str

    def small(self) -> list[str]:
        """Letters of factors and divisors, whose numbers are small."""
        found = {right for _, operator, right in self.steps if operator in "*/"}
        found |= {left for left, operator, _ in self.steps if operator == "*"}
        return sorted(name for name in found if name.isalpha())

    def large(self) -> list[str]:
        """The other letters."""
        operands = {name for left, _, right in self.steps for name in (left, right)}
        return sorted(name for name in operands - set(self.small()) if name.isalpha())


def _parsed(line: str) -> Template:
    steps, _, text = line.partition(" | ")
    return Template(tuple((step[0], step[1], step[2]) for step in steps.split(",")), text)


_TEMPLATES = tuple(_parsed(line) for line in TEMPLATES.strip().splitlines())


def scenario(rng: random.Random, steps: int) -> tuple[str, Chain]:
    """(question, chain) of a problem with exactly `steps` steps, 1 to 3."""
    template = rng.choice([t for t in _TEMPLATES if len(t.steps) == steps])
    while True:
        # Drawn again with the others, divisors would mostly be 2: most sums are no multiple of 9.
        small = {name: rng.randint(2, 12) for name in template.small()}
        for _ in range(TRIES):
            values = small | {name: rng.randint(2, 99) for name in template.large()}
            chain = _chain(template, values)
            if chain:
                return _question(rng, template, values), chain


def _chain(template: Template, values: dict[str, int]) -> Chain:
    """The equations; () where a result is too small, too large, or no whole number.

    A quotient is at least 2.
    """
    results: list[int] = []
    lines = []
    for left, operator, right in template.steps:
        a, b = (values[x] if x.isalpha() else results[int(x) - 1] for x in (left, right))
        if operator == "/":
            value = a // b if a % b == 0 and a > b else 0
        else:
            value = {"+": a + b, "-": a - b, "*": a * b}[operator]
        if not 1 <= value <= LARGEST:
            return ()
        results.append(value)
        lines.append(f"{a}{operator}{b}={value}")
    return tuple(lines)


def _question(rng: random.Random, template: Template, values: dict[str, int]) -> str:
    who, other = rng.sample(NAMES.split(), 2)
    words = {pool: rng.choice(choices.split()) for pool, choices in POOLS.items()}
    text = template.text
    if words["item"].startswith("u"):
        text = text.replace("A {item}", "An {item}").replace(" a {item}", " an {item}")
    return text.format(who=who, other=other, **words, **values)
