"""Held-out chat: short turns between somebody who asks and somebody who answers, for bits per byte.

Invariant: a conversation and its variants, which differ in names, things and numbers, are one cluster.
"""

import random

from generators.rows import Row, sections, variants

SLOTS = {
    "name": ["Lena", "Omar", "Kate", "Felix", "Sana", "Piotr", "Amy", "Diego", "Ruth", "Kofi"],
    "n": ["two", "three", "four", "five", "six", "seven"],
    "day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"],
    "city": ["Lyon", "Bristol", "Krakow", "Porto", "Denver", "Leipzig", "Turin", "Quito"],
    "thing": ["laptop", "kettle", "printer", "washing machine", "headset", "camera", "lamp"],
    "food": ["pancakes", "a curry", "vegetable soup", "a potato salad", "banana bread", "fried rice"],
    "hobby": ["the guitar", "chess", "watercolours", "knitting", "running", "the piano"],
}

TALKS = sections("""
late
- Hey, are you still coming on {day}?
- Yes, but I'll be late. The train from {city} only gets in at half past {n}.
- No problem, we'll keep some food for you. {name} is making {food}.
- Perfect, then I'm definitely not missing it!

recipe
- I have eggs, flour and a bit of milk. What can I make?
- How about {food}? If something is missing, you can usually replace it.
- I don't have any butter, though.
- Oil works as well. Use a little less than the recipe says, and keep the pan hot.

broken
- My {thing} stopped working this morning and I have no idea why.
- Did you try to unplug it and plug it in again after {n} minutes?
- I did, twice. Nothing happens.
- Then check the fuse, and if that's fine, bring it in. It should still be under warranty.

learn
- I'm {n} weeks into learning {hobby} and I feel like I'm getting nowhere.
- That's normal! The first months are the slowest.
- How often should I practise?
- A little every day beats one long session. Fifteen minutes is plenty to start with.

travel
- What should I see in {city} if I only have one day?
- Start with the old town in the morning, before it gets crowded.
- And in the afternoon?
- Walk along the river, have a late lunch, and take the tram up the hill for the view. Wear good shoes.

sorry
- I'm really sorry I forgot your birthday.
- It's fine, honestly. I nearly forgot it myself.
- Let me make it up to you. Dinner on {day}?
- Deal. But only if {name} comes too, and you're paying for dessert.

password
- I can't log in to my account any more.
- I'm sorry to hear that. Do you get an error message?
- It says the password expired {n} days ago.
- Thanks. I have just sent you a link to set a new one. It's valid for an hour.

gift
- Any idea what I could give {name}? Nothing too expensive.
- Didn't they start with {hobby} recently? A good book about it would be nice.
- Maybe. They already have so many books.
- Then get tickets for something you can do together. People remember those.

essay
- Can you look at the first line of my essay? It sounds boring.
- Sure. Instead of saying what you will write about, start with the question itself.
- So just ask it straight away?
- Exactly. One short question, then {n} sentences that say why it matters.

weather
- Do you think we can still have the picnic on {day}?
- The forecast says rain from noon, but it was wrong all week.
- Should we have a plan B?
- Let's meet at my place in that case. I have enough room for {n} people and a big table.

moving
- We're finally moving to {city} next month!
- Congratulations! Do you need help with the boxes?
- That would be amazing. We have far too many, and {n} of them are only books.
- I'll bring my van. You bring the coffee.

meeting
- Could we move our meeting to {day}? Something came up.
- I'm free between ten and {n}, would that suit you?
- Ten is perfect. Shall I invite {name} as well?
- Please do. They know more about the budget than both of us together.

cat
- My cat keeps waking me up at five in the morning.
- Do you feed her right after you get up?
- Of course, otherwise she won't stop.
- Then she has trained you well. Wait {n} minutes longer each day before you fill the bowl.

refund
- I ordered a {thing} and received the wrong colour.
- I apologise for the mix-up. Would you like a replacement or a refund?
- A replacement, please, if it's quick.
- It will be with you by {day}. You can keep the other one until then.

bored
- I'm bored. Tell me something interesting.
- Did you know that an octopus has three hearts?
- Three? Why would it need that many?
- Two of them pump blood through the gills, and the third looks after the rest of the body.

homework
- I don't get what a prime number is.
- It's a whole number above one that only one and itself divide evenly.
- So {n} might be one?
- Try it: look for a smaller number, other than one, that goes into it without a remainder.

job
- I have an interview on {day} and I'm terrified.
- What exactly are you afraid of?
- That they ask something and I just freeze.
- Then say you need a moment. Nobody minds a short pause, and {name} got hired after a very long one.

plants
- Why are the leaves of my basil turning yellow?
- How often do you water it?
- Every day, sometimes twice.
- That's too much. Let the soil dry a bit first, and put the pot near a window. Give it {n} days.

phone
- Is it bad to charge my phone overnight?
- Not really. Modern phones stop by themselves when they're full.
- Mine gets quite warm, though.
- Take it out of its case then, and don't leave it under the pillow. Heat is what ages the battery.

neighbour
- The neighbours had a party again until {n} in the morning.
- Have you talked to them about it?
- No, I only complained to {name}.
- Go over with some cake. It's surprising how much quieter people get once they know your face.

book
- I just finished the novel you lent me.
- And? Did you guess who wrote the letters?
- Not until the last {n} pages. I was sure it was the sister.
- Everyone thinks that! Read it again and you'll see all the hints.

tax
- How long do I have to keep old receipts?
- That depends on the country, but several years is common for anything about taxes.
- I have a shoebox with {n} years in it.
- Scan them on a rainy {day}. Then a lost box is not a disaster.

running
- My knee hurts whenever I run.
- Since when, and did you change anything? New shoes, longer distance?
- I doubled my distance {n} weeks ago.
- That's a likely reason. Rest a few days, then go up slowly. If it still hurts, see a doctor.

movie
- What are we watching tonight?
- You choose. I picked the last {n} times.
- Then something funny, I had a long day in {city}.
- Fine by me, as long as it's not the one with the talking dog again.

wifi
- The internet is slow again in the bedroom.
- The wall between the rooms is probably the reason.
- Can I do anything about it without drilling?
- Put the router higher up and away from the {thing}. If that's not enough, get a repeater.

language
- How do I say thank you politely in a letter?
- You could write: I am most grateful for your help.
- Isn't that a bit stiff?
- A little. Among colleagues, many thanks for your help, {name}, is warm enough and never wrong.

dentist
- Hello, I'd like to make an appointment.
- Certainly. Is it a check-up, or do you have any pain?
- Just a check-up, I was last there {n} years ago.
- Then we should take our time. Would {day} at nine suit you?

secret
- Promise you won't tell {name}.
- I promise. What is it?
- We're planning a surprise trip to {city} for the birthday.
- That's lovely! But you'd better stop leaving the tickets on the kitchen table.

tired
- I slept {n} hours and I'm still tired.
- Did you look at a screen right before bed?
- I might have watched one episode. Or three.
- There's your answer. Try reading something dull instead, it works wonders.

cooking
- How do I know when the rice is done?
- When the water is gone and small holes appear on the surface.
- Mine always sticks to the pot.
- Take it off the heat, leave the lid on and wait {n} minutes. Then loosen it with a fork.
""")
N_VARIANTS = 3


def items(seed: int) -> list[Row]:
    """Fill the conversations' open places in several ways."""
    rng = random.Random(f"chat_text-{seed}")
    return [
        row
        for name, text in sorted(TALKS.items())
        for row in variants(name, N_VARIANTS, lambda text=text: talked(text, rng))
    ]


def talked(talk: str, rng: random.Random) -> str:
    """Write the turns with their speakers, one a line."""
    drawn = {slot: rng.choice(words) for slot, words in SLOTS.items()}
    speakers = rng.choice([("User", "Assistant"), ("A", "B"), ("Customer", "Support"), ("Me", "You")])
    turns = talk.format(**drawn).removeprefix("- ").split(" - ")
    return "\n".join(f"{speakers[i % 2]}: {turn}" for i, turn in enumerate(turns))
