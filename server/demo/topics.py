"""The topics of everyday chat, as tables: what users ask, what there is to like, to regret and to advise.

Joys carry cheerful words and woes gloomy words (`tone` holds both lists); tips and questions carry neither.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """One topic: noun phrases, cheerful and gloomy remarks, neutral advice, and questions with answers."""

    name: str
    asks: tuple[str, ...]
    things: tuple[str, ...]
    joys: tuple[str, ...]
    woes: tuple[str, ...]
    tips: tuple[str, ...]
    questions: tuple[tuple[str, tuple[str, ...]], ...]


def _topic(name: str, asks: str, things: str, joys: str, woes: str, tips: str, questions: str) -> Topic:
    """Read one topic: items are separated by `|`; a question is `text > answer, answer, answer`."""

    def items(text: str) -> tuple[str, ...]:
        return tuple(" ".join(item.split()) for item in text.split("|"))

    asked = (item.split(" > ") for item in items(questions))
    return Topic(
        name,
        items(asks),
        items(things),
        items(joys),
        items(woes),
        items(tips),
        tuple((text, tuple(answers.split(", "))) for text, answers in asked),
    )


TOPICS: tuple[Topic, ...] = (
    _topic(
        "the weather",
        "How is the weather today? | Will it rain tomorrow? | It is windy outside. | What a day it is outside!",
        "the rain | the wind | the morning fog | the blue sky | a summer storm | the first snow",
        "A bright sky is a wonderful gift. | Even the rain sings a happy song. | The sunshine makes every "
        "street lovely.",
        "A grey sky hangs over everything. | The rain sounds like a sad old song. | The clouds make every "
        "street dreary.",
        "take an umbrella | wear a warm coat | open the window for an hour | walk along the river",
        "Which season do you like? > spring, summer, autumn | What is the sky like at your place? > cloudy, "
        "clear, windy",
    ),
    _topic(
        "the garden",
        "How do I start a garden? | What should I plant this year? | My tomatoes are growing. | I was in the "
        "garden today.",
        "fresh tomatoes | the roses | a small apple tree | the herbs | the vegetable bed | the bees",
        "A garden is a place of joy. | Every seed is a happy little promise. | The flowers smile at everyone "
        "who passes.",
        "A garden is a place of weeds and worry. | Every seed is one more sad little failure. | The flowers "
        "wither and sigh.",
        "water the plants in the evening | plant the herbs in good soil | cut the roses in March | keep some seeds",
        "What do you grow? > roses, beans, potatoes | How big is your garden? > very small, quite big, just a balcony",
    ),
    _topic(
        "cooking",
        "What should I cook tonight? | I made soup today. | Can you help me with dinner? | I burned the rice.",
        "a warm soup | fresh pasta | a vegetable stew | rice with beans | a simple salad | a big pot of curry",
        "A warm kitchen makes people happy. | A good meal brings joy to the whole table. | Every spoonful is "
        "a lovely surprise.",
        "A cold kitchen makes people weary. | The meal will be dull and soon forgotten. | Every spoonful "
        "tastes of sad leftovers.",
        "add a little salt | fry the onions slowly | taste it before you serve it | use fresh herbs",
        "What do you like to eat? > soup, pasta, curry | Who will eat with you? > my sister, two friends, nobody",
    ),
    _topic(
        "baking",
        "How do I bake bread? | I want to bake a cake. | My cake did not rise. | The oven is on.",
        "fresh bread | an apple pie | a chocolate cake | warm biscuits | a lemon tart | cinnamon rolls",
        "The smell of a cake is pure joy. | Warm bread makes every morning wonderful. | Sugar and butter "
        "make happy friends.",
        "The smell of burnt cake is hopeless. | Old bread makes every morning dull. | Flour and dough only "
        "end in misery.",
        "let the dough rest | warm the oven first | weigh the flour | leave the oven door closed",
        "What do you want to bake? > bread, a cake, biscuits | Who is it for? > my mother, the neighbours, my class",
    ),
    _topic(
        "music",
        "What music do you like? | I am learning the piano. | Play me a song. | I went to a concert.",
        "an old song | the piano | a string quartet | the radio | a village choir | a slow waltz",
        "Music fills the heart with joy. | A happy tune makes the whole room dance. | Every note is a bright "
        "little star.",
        "Music fills the heart with sorrow. | A sad tune makes the whole room silent. | Every note fades "
        "like a weary sigh.",
        "practise for ten minutes a day | listen to one song twice | sing along | tune the strings first",
        "Do you play an instrument? > the guitar, the piano, no | What did you hear last? > a choir, a "
        "waltz, the radio",
    ),
    _topic(
        "books",
        "Can you recommend a book? | I finished my book. | What should I read next? | I like reading in bed.",
        "a good novel | the library | an old fairy tale | a thick crime story | a book of poems | the last chapter",
        "A good story is a wonderful friend. | Every page brings a happy surprise. | Reading makes long "
        "evenings lovely.",
        "Every story ends in sorrow. | Every page brings another gloomy turn. | Reading makes long evenings "
        "even more dreary.",
        "read a chapter before bed | ask at the library | start with short stories | put the phone away",
        "What do you read now? > a novel, poems, a crime story | Where do you read? > in bed, on the train, "
        "in the park",
    ),
    _topic(
        "sleep",
        "I cannot sleep. | How can I sleep better? | I slept nine hours. | I am tired today.",
        "a long sleep | a short nap | a soft pillow | a quiet night | an early bedtime | a strange dream",
        "A good rest makes the morning bright. | Sweet dreams are a lovely present. | A soft bed is pure joy.",
        "A bad night makes the morning bleak. | Dark dreams come back with a sigh. | A hard bed is pure misery.",
        "go to bed at the same time | turn off the lights | drink warm milk | leave the phone in the kitchen",
        "When do you go to bed? > at ten, at midnight, very late | What did you dream of? > the sea, a train, nothing",
    ),
    _topic(
        "work",
        "Work was long today. | How do I get more done? | I have a new job. | My boss called me.",
        "a long meeting | the new office | a busy morning | the team | a full desk | the lunch break",
        "Good work brings a happy evening. | A kind team makes each task a joy. | A finished list is a "
        "wonderful sight.",
        "More work brings a weary evening. | A tired team makes each task a misery. | A long list is a hopeless sight.",
        "make a short list | do one thing at a time | take a break at noon | start with the hardest task",
        "What is your job? > I am a nurse, I am a cook, I drive a bus | When do you finish? > at five, at six, late",
    ),
    _topic(
        "school",
        "I have a test tomorrow. | School starts on Monday. | How should I study? | My homework is done.",
        "the maths test | a new teacher | the school trip | the homework | a history lesson | the long holiday",
        "Learning is a joy for life. | A good lesson makes the whole class smile. | Every answer is a bright "
        "new light.",
        "Learning is tiresome and never ends. | A dull lesson makes the whole class yawn. | Every answer is "
        "soon forgotten, alas.",
        "study a little every day | write short notes | ask your teacher | sleep well before the test",
        "What is your best subject? > maths, history, music | How many tests do you have? > one, two, far too many",
    ),
    _topic(
        "travel",
        "Where should I travel? | I am going on a trip. | I am packing my bag. | We came home yesterday.",
        "a long trip | a small hotel | the old town | a map of the island | the night bus | a week abroad",
        "A journey is a wonderful adventure. | New streets bring happy surprises. | Every road leads to a lovely view.",
        "A journey is a tiresome burden. | New streets bring only sore and weary feet. | Every road leads to "
        "a bleak view.",
        "pack a light bag | learn three words of the language | book the room early | carry some water",
        "Where are you going? > to the coast, to Rome, to the hills | How long will you stay? > a week, two "
        "days, a month",
    ),
    _topic(
        "trains",
        "I take the train to work. | My train is late. | I like trains. | When is the best time to take the train?",
        "the night train | a window seat | the old station | the morning train | a steam engine | the dining car",
        "A train ride is a lovely treat. | The wheels sing a happy song. | A window seat makes every mile wonderful.",
        "A train ride is a dreary wait. | The wheels sing a sad song. | A window seat makes every grey mile longer.",
        "come ten minutes early | bring a sandwich | sit by the window | check the timetable",
        "Where does your train go? > to the city, to the sea, home | How long is the ride? > an hour, ten "
        "minutes, all night",
    ),
    _topic(
        "pets",
        "I have a dog. | Should I get a cat? | My cat sleeps all day. | How do I train a puppy?",
        "an old dog | a young cat | two rabbits | a goldfish | a shy parrot | a lively puppy",
        "A pet is a happy friend for life. | Every wag of a tail is pure joy. | A soft paw makes the day bright.",
        "A pet is a sad goodbye in waiting. | Every wet paw means more tiresome cleaning. | A howl in the "
        "night is misery.",
        "give it fresh water | play with it each day | visit the vet once a year | brush its coat",
        "What is its name? > Bello, Mimi, Otto | How old is it? > two years, ten years, very young",
    ),
    _topic(
        "sport",
        "I went running. | Which sport should I try? | We lost the match. | I want to get fit.",
        "a long run | the football match | a tennis lesson | the swimming pool | the gym | a walk up the hill",
        "Moving makes the heart happy. | A good game is a joy to watch. | Every step is a wonderful win.",
        "Moving makes the legs weary. | A long game is a misery to watch. | Every step is a hopeless effort.",
        "start slowly | stretch your legs | drink enough water | train with a friend",
        "How often do you train? > once a week, every day, never | Who do you play with? > my brother, a team, nobody",
    ),
    _topic(
        "films",
        "What film should I watch? | I saw a film last night. | Do you like the cinema? | The film was long.",
        "an old film | the cinema | a short comedy | a film about the sea | the last scene | a silent film",
        "A good film makes everybody smile. | The big screen is a wonderful window. | A happy ending warms the heart.",
        "A bad film makes everybody sigh. | The big screen is a dull grey wall. | A sad ending chills the heart.",
        "buy the tickets early | sit in the middle row | watch it with a friend | stay for the music at the end",
        "What did you see last? > a comedy, a silent film, nothing | Who went with you? > my aunt, a friend, nobody",
    ),
    _topic(
        "shopping",
        "I need new shoes. | I am going to the market. | Everything costs more now. | I bought a coat.",
        "new shoes | the market | a warm coat | a shopping list | the corner shop | a second-hand lamp",
        "A good find makes the whole day bright. | The market is a happy, colourful place. | A small treat "
        "is a lovely thing.",
        "A high price makes the whole day bleak. | The market is a sad, crowded place. | A new thing is soon "
        "dull and broken.",
        "write a list | compare two prices | go early in the morning | bring your own bag",
        "What do you need? > shoes, bread, a lamp | Where do you shop? > at the market, in town, next door",
    ),
    _topic(
        "cleaning",
        "I have to clean my room. | The kitchen is a mess. | How do I remove a stain? | I washed the windows.",
        "a tidy room | the dirty dishes | the dusty shelf | the laundry | a clean floor | the old carpet",
        "A clean room is a wonderful feeling. | Bright windows make a happy home. | Fresh sheets are pure joy.",
        "A clean room is dull again by noon. | Dusty windows make a gloomy home. | Dirty dishes are pure misery.",
        "open the windows | start with one corner | use warm water and soap | sort the things you do not need",
        "Which room is it? > the kitchen, the bathroom, my bedroom | Who helps you? > my son, nobody, my flatmate",
    ),
    _topic(
        "birthdays",
        "It is my birthday. | What can I give my friend? | I am planning a party. | I am a year older now.",
        "a birthday cake | a small party | a hand-made present | the candles | a letter from a friend | the guests",
        "A birthday is a day full of joy. | Every candle is a bright little wish. | A party makes old friends happy.",
        "A birthday is a day closer to a sad end. | Every candle burns down with a sigh. | A party makes old "
        "friends weary.",
        "write a card by hand | invite a few friends | bake a simple cake | make the present yourself",
        "How old are you now? > thirty, seven, sixty | Who is coming? > my family, five friends, nobody",
    ),
    _topic(
        "family",
        "My sister is visiting. | I miss my family. | My grandmother called. | We have a new baby.",
        "my sister | my grandmother | a big family dinner | the new baby | my cousins | an old photograph",
        "A family is a home full of joy. | A visit makes every face smile. | Old stories are a wonderful treasure.",
        "A family is a house full of quarrels and misery. | A visit makes every face weary. | Old stories "
        "bring only sorrow.",
        "call them on Sunday | cook something simple | look at old photographs together | listen more than you talk",
        "How many are you? > four, nine, just two | Where do they live? > far away, next door, in the north",
    ),
    _topic(
        "friends",
        "I met an old friend. | How do I find friends? | My friend moved away. | We talked all night.",
        "an old friend | a long letter | a new neighbour | a quiet talk | a walk together | a phone call",
        "A friend is a wonderful gift. | A long talk makes two people happy. | A kind word makes the day bright.",
        "A friend is lost so soon, alas. | A long silence makes two people sad. | A cold word makes the day bleak.",
        "send a short message | say what you feel | meet for a cup of tea | join a choir or a club",
        "How did you meet? > at school, at work, by chance | When do you meet? > on Friday, tonight, next month",
    ),
    _topic(
        "tea and coffee",
        "I need a coffee. | How do I make good tea? | I drink tea every morning. | The coffee is cold.",
        "a cup of tea | strong coffee | a pot of green tea | the little cafe | hot chocolate | a broken teapot",
        "A warm cup makes a happy hand. | The first sip is pure joy. | A quiet cafe is a lovely place.",
        "A cold cup makes a sad hand. | The first sip is bitter misery. | An empty cafe is a dreary place.",
        "warm the pot first | use fresh water | wait three minutes | add a little honey",
        "Tea or coffee? > tea, coffee, both | When do you drink it? > in the morning, at four, all day",
    ),
    _topic(
        "the sea",
        "I live by the sea. | Is the sea cold? | I want to go to the beach. | We took a boat.",
        "the beach | a small boat | the cold waves | the lighthouse | the harbour | a walk on the sand",
        "The sea sings a happy song. | A day on the beach is pure joy. | The waves make a lovely sound.",
        "The sea sings a sad song. | A day on the beach is a grey misery. | The waves make a dreary sound.",
        "bring a towel | watch the tide | swim near the shore | look for shells",
        "Can you swim? > yes, no, a little | What did you find there? > shells, a bottle, nothing",
    ),
    _topic(
        "winter",
        "It is cold today. | Winter is here. | I like the snow. | How do I stay warm?",
        "the snow | a thick scarf | the frozen lake | the long nights | a wood fire | a sledge",
        "Fresh snow is a wonderful sight. | A warm fire makes a happy room. | The frost paints lovely flowers.",
        "Old snow is a dreary sight. | A dying fire makes a gloomy room. | The frost kills everything, alas.",
        "wear thick socks | light a fire | drink something hot | feed the birds",
        "Is there snow at your place? > yes, no, a little | What do you wear? > a scarf, two coats, thick socks",
    ),
    _topic(
        "bicycles",
        "I ride a bicycle. | My tyre is flat. | Should I buy a bicycle? | I cycled to work.",
        "an old bicycle | a flat tyre | a long ride | the bicycle path | a new bell | the steep hill",
        "A ride downhill is pure joy. | Two wheels make a happy day. | A bell rings bright in the street.",
        "A ride uphill is pure misery. | Two flat tyres make a sad day. | The rain falls on every weary rider.",
        "check the brakes | oil the chain | wear a helmet | pump up the tyres",
        "Where do you ride? > to work, in the woods, nowhere | What colour is it? > red, blue, black",
    ),
    _topic(
        "painting",
        "I painted a picture. | How do I draw a face? | I like museums. | I want to learn to paint.",
        "a blue landscape | the museum | a box of colours | a pencil drawing | an old portrait | the white canvas",
        "Every colour is a happy thought. | A picture makes a bright corner. | A new brush is a wonderful start.",
        "Every colour fades to grey. | A picture makes a dark corner sad. | A blank canvas is a hopeless start.",
        "begin with a pencil | use only three colours | look for a long time | draw something every day",
        "What do you paint? > trees, faces, boats | Which colour do you use most? > blue, green, red",
    ),
    _topic(
        "walking",
        "I went for a walk. | Where can I go walking? | The forest is quiet. | I walk every evening.",
        "the forest | a long walk | the path by the river | the hill behind the village | an old bridge | "
        "the evening air",
        "A walk makes the heart happy. | The trees whisper lovely things. | Every path has a bright end.",
        "A walk makes the feet weary. | The trees whisper sad things. | Every path has a bleak end.",
        "wear good shoes | leave before noon | follow the river | stop and listen",
        "How far did you go? > a mile, to the bridge, not far | Who walked with you? > my dog, a friend, nobody",
    ),
)
"""Every topic of everyday chat."""
