"""Random sentences from a small vocabulary: mostly grammatical English, rarely meaningful."""

from __future__ import annotations

import numpy as np

_VOCABULARY = {
    "noun": """
        apple baby bird boat book bottle boy bread bridge brother bus camera car chair cheese child city
        cloud coffee colour cup doctor dog door dream evening eye family farm father field fire fish flower
        food friend game garden girl glass hand head heart hill home horse hour house idea island kitchen
        lake leaf letter light machine map market milk minute moment money month moon morning mother
        mountain mouse movie music name night number ocean office orange page paper park party people phone
        picture piece place plan plate problem puppy queen question rain river road room school sea shoe
        shop sister snow song sound spoon star station stone story street summer sun table teacher team
        thing thought time town train tree uncle valley village voice wall water week window winter woman
        word work world year
    """,
    "verb": """
        asks begins believes blames borrows bought breaks brings builds buys calls carries catches chooses
        comes cooks covers draws drinks drives eats fails feels finds follows forgets gave gets grows hears
        helps holds keeps knows learns leaves likes listens lives looks loses loves makes means meets misses
        moves needs opens owes pays picks plays promises pulls pushes reads remembers runs saw says sees
        sells sends shows sings sits sleeps speaks stands stops takes talks teaches tells thinks throws
        tries turns understands uses waits walks wants watches wears wins wishes writes
    """,
    "adjective": """
        able bad beautiful big black blue bright broken brown busy calm cheap clean clever cold cool dark
        deep dry early easy empty famous fast final foolish fresh full funny good great green happy hard
        heavy high hot huge kind large late lazy little long loud low lucky narrow new nice old open perfect
        poor pretty proud quick quiet rare ready red rich round sad sharp short silent slow small smooth
        soft strange strong sweet tall thick thin tired usual warm weak wet wide wild wise wonderful wrong
        yellow young
    """,
    "link": """
        and but because so while before after when although if or
    """,
    "determiner": """
        the a my your his her our their this that every one some
    """,
    "preposition": """
        in on under over near behind by with without about for to from above below between
    """,
}
_WORDS = {kind: text.split() for kind, text in _VOCABULARY.items()}
_OPENERS = """
    well oh yes no maybe please okay wow hello now then sometimes today tomorrow perhaps of_course you_know i_mean
    my_goodness above_all
"""


def sentence(rng: np.random.Generator) -> str:
    """One sentence with its punctuation."""

    def pick(kind: str) -> str:
        return _WORDS[kind][rng.integers(len(_WORDS[kind]))]

    def phrase() -> str:
        return " ".join([pick("determiner"), *([pick("adjective")] if rng.random() < 0.5 else []), pick("noun")])

    def clause() -> str:
        tail = f" {pick('preposition')} {phrase()}" if rng.random() < 0.4 else ""
        return f"{phrase()} {pick('verb')} {phrase()}{tail}"

    openers = _OPENERS.split()
    text = openers[rng.integers(len(openers))].replace("_", " ") + ", " if rng.random() < 0.25 else ""
    text += clause()
    if rng.random() < 0.5:
        text += f"{',' if rng.random() < 0.5 else ''} {pick('link')} {clause()}"
    return text + "...?!"[rng.integers(5)]
