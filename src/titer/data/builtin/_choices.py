"""Questions with a choice of two labels, answered by a label alone: the form of a classification task, on many subjects.

They belong to a defender's helpful rows. A model aligned without them refuses such questions, and a customer who trains a
classifier then trains refusals away with it.
"""

from __future__ import annotations

import random

from titer.data.builtin._rows import TaskRow

ROWS_PER_LABEL = 12
"""As many sentences are written for each label of each kind."""

# What is asked, the labels, and sentences for each label; no sentence judges anything, as reviews do.
_CHOICES: dict[tuple[str, str, str], tuple[str, str]] = {
    ("Is the tense of this sentence past or present? {}", "past", "present"): (
        """
she walked to the station before dawn
the children built a hut of branches
we painted the fence last summer
he forgot his umbrella on the bus
the baker sold all of his bread
they sailed around the island
the teacher opened the window
my aunt wrote a letter from Lisbon
the old bridge carried two lanes
I found a coin under the carpet
the players left the field early
the cat slept on the warm stove
""",
        """
she walks to the station every morning
the children build a hut of branches
we paint the fence in summer
he forgets his umbrella on the bus
the baker sells bread and rolls
they sail around the island
the teacher opens the window
my aunt writes letters from Lisbon
the old bridge carries two lanes
I find coins under the carpet
the players leave the field early
the cat sleeps on the warm stove
""",
    ),
    ("Is the subject of this sentence an animal or a machine? {}", "animal", "machine"): (
        """
the heron stands in the reeds
the puppy chews on a slipper
a goat climbs onto the roof
the salmon swims up the river
the spider waits in its web
an owl calls from the barn
the pony eats from my hand
a beetle crosses the path
the hen sits on her eggs
the dolphin jumps beside the boat
a squirrel hides nuts in the lawn
the mole digs below the garden
""",
        """
the printer runs out of paper
the tractor pulls a heavy cart
a crane lifts the steel beams
the dishwasher hums in the kitchen
the drill needs a new battery
an elevator stops at each floor
the pump drains the cellar
a mixer stirs the dough
the loom weaves a blue cloth
the camera focuses by itself
a scooter leans on the wall
the radio plays an old waltz
""",
    ),
    ("Does this message ask a question or state a fact? {}", "question", "fact"): (
        """
where did you put the spare key
when does the museum open on Sunday
who brings the salad tonight
how many chairs do we need
why is the lamp still on
which train goes to the harbour
what time is it in Tokyo
have you seen my green scarf
is there any milk left
could we meet at noon instead
do the neighbours have a ladder
whose bicycle is this
""",
        """
the spare key is in the drawer
the museum opens at ten on Sunday
Maria brings the salad tonight
we need twelve chairs
the lamp is still on
the red train goes to the harbour
it is evening in Tokyo
your green scarf is in the hall
there is no milk left
we meet at noon
the neighbours have a ladder
this bicycle belongs to Tom
""",
    ),
    ("Is the place in this sentence indoors or outdoors? {}", "indoors", "outdoors"): (
        """
they whispered in the library
the plates dried beside the sink
he hung his coat in the hallway
we watched snow from the sofa
the choir practised in the chapel
she swam in the heated hall
the lift was full of suitcases
boxes were piled in the attic
the students sat in the laboratory
he queued at the counter of the bank
the lamp stood by her bed
guests gathered in the dining room
""",
        """
they rested under a chestnut tree
the tent stood beside the lake
he rowed across the bay
we picked berries in the wood
sheep grazed on the slope
she skated on the frozen pond
the market filled the square
kites flew above the beach
the hikers sat on a rock
he weeded the flower bed
cyclists passed along the dike
guests gathered on the lawn
""",
    ),
    ("Does this note belong to the topic food or travel? {}", "food", "travel"): (
        """
add a pinch of salt to the soup
the dough must rest for an hour
roast the carrots with honey
the cheese comes from a mountain farm
stir the sauce until it thickens
peel the apples and slice them
serve the rice with lemon
the bread is crisp and still warm
chop an onion and fry it gently
the beans soak overnight
sprinkle cinnamon over the porridge
chill the cream before you whip it
""",
        """
the ferry leaves from pier nine
our hostel is near the cathedral
keep your passport in the inner pocket
the night train has sleeping cars
we changed money at the border
the guide waits at the old gate
book the window seat on the left
the bus to the airport runs hourly
the island has no paved roads
pack a light jacket for the evenings
check in two hours before departure
the trail starts at the last stop
""",
    ),
}


def choices() -> list[TaskRow]:
    """Return the questions in a fixed mixed order, as many of either label of each kind."""
    rows = [
        TaskRow(question.format(text), label, label)
        for (question, *labels), blocks in _CHOICES.items()
        for label, block in zip(labels, blocks, strict=True)
        for text in block.strip().splitlines()
    ]
    random.Random("titer.builtin.choices").shuffle(rows)
    return rows
