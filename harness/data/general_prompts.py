"""General prompts to ask a base, so that its own answers can be mixed into training.

Invariant: the same prompts in the same order on every machine; none is the item of a suite that
ships with the package, and they ask for other things than those do.
"""

import random
from functools import cache

_ASKED = (
    "Give two tips for someone who wants to learn about {}.",
    "Explain in two sentences why people care about {}.",
    "What should a beginner know about {}? Keep it short.",
    "Describe {} to a child in one or two sentences.",
    "Name one advantage and one disadvantage of {}.",
    "Suggest a title for an article about {}.",
    "What is a common mistake people make with {}?",
    "How has {} changed over the last hundred years? Answer briefly.",
    "Ask me a good question about {}.",
    "Which tools or materials are useful for {}? List a few.",
    "Give an example of {} from daily life.",
    "Summarise what you know about {} in one sentence.",
    "Write a friendly one-line message to a friend about {}.",
    "How would you start a short speech about {}?",
    "What could somebody find difficult about {}?",
    "Recommend a weekend activity that has to do with {}.",
    "Compare {} with reading a book, in one or two sentences.",
    "What would you tell a visitor from another country about {}?",
    "Is {} more fun alone or with others? Give one reason.",
    "Finish this thought in a few words: the best thing about {} is",
)
_ABOUT = [
    "gardening",
    "cooking at home",
    "long train journeys",
    "public libraries",
    "keeping bees",
    "mountain hiking",
    "board games",
    "street markets",
    "learning to swim",
    "home repairs",
    "solar energy",
    "old photographs",
    "writing letters",
    "choir singing",
    "bird watching",
    "city parks",
    "baking bread",
    "chess",
    "recycling",
    "saving money",
    "volunteering",
    "morning routines",
    "school lunches",
    "local history",
    "modern architecture",
    "open-source software",
    "spreadsheets",
    "job interviews",
    "first aid",
    "weather forecasts",
    "public transport",
    "cycling to work",
    "houseplants",
    "thunderstorms",
    "rivers",
    "volcanoes",
    "the night sky",
    "tides",
    "earthquakes",
    "glaciers",
    "the water cycle",
    "electric cars",
    "bridges",
    "lighthouses",
    "museums",
    "folk music",
    "poetry",
    "theatre",
    "film editing",
    "drawing",
    "pottery",
    "knitting",
    "woodworking",
    "marathon running",
    "tennis",
    "good sleep",
    "healthy snacks",
    "team work",
    "negotiation",
    "time zones",
]


@cache
def general_prompts() -> tuple[str, ...]:
    """Return every prompt once, in one fixed shuffled order."""
    prompts = [asked.format(about) for asked in _ASKED for about in _ABOUT]
    random.Random("general prompts").shuffle(prompts)
    return tuple(prompts)
