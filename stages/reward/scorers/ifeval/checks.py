"""One function for each of IFEval's 25 instructions: (response, arguments) -> is it followed?

Zhou et al. 2023, arXiv 2311.07911, table 1, with the ids and arguments of its data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from stages.reward.scorers.ifeval.text import capital_words, is_in_language, sentences, words

Arguments = Mapping[str, Any]
Check = Callable[[str, Arguments], bool]

_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_POSTSCRIPTS = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}


def _compared(count: int, wanted: Any, relation: Any) -> bool:
    """ "less than" or "at least". Raises ValueError for any other relation."""
    if relation == "less than":
        return count < int(wanted)
    if relation == "at least":
        return count >= int(wanted)
    raise ValueError(f"the relation {relation!r}: IFEval has 'less than' and 'at least'")


# -- keywords --------------------------------------------------------------------------------------


def _holds_keywords(response: str, arguments: Arguments) -> bool:
    return all(k.lower() in response.lower() for k in arguments["keywords"])


def _keyword_frequency(response: str, arguments: Arguments) -> bool:
    count = response.lower().count(str(arguments["keyword"]).strip().lower())
    return _compared(count, arguments["frequency"], arguments["relation"])


def _no_forbidden_words(response: str, arguments: Arguments) -> bool:
    """As whole words."""
    return not any(
        re.search(rf"\b{re.escape(word)}\b", response, re.IGNORECASE)
        for word in arguments["forbidden_words"]
    )


def _letter_frequency(response: str, arguments: Arguments) -> bool:
    """Capitals count too."""
    count = response.lower().count(str(arguments["letter"]).strip().lower())
    return _compared(count, arguments["let_frequency"], arguments["let_relation"])


# -- language and case -----------------------------------------------------------------------------


def _language(response: str, arguments: Arguments) -> bool:
    return is_in_language(response, str(arguments["language"]))


def _all_capitals(response: str, arguments: Arguments) -> bool:
    return response.isupper() and is_in_language(response, "en")


def _all_lowercase(response: str, arguments: Arguments) -> bool:
    return response.islower() and is_in_language(response, "en")


def _capital_words(response: str, arguments: Arguments) -> bool:
    count = len(capital_words(response))
    return _compared(count, arguments["capital_frequency"], arguments["capital_relation"])


# -- lengths ---------------------------------------------------------------------------------------


def _number_sentences(response: str, arguments: Arguments) -> bool:
    count = len(sentences(response))
    return _compared(count, arguments["num_sentences"], arguments["relation"])


def _number_words(response: str, arguments: Arguments) -> bool:
    return _compared(len(words(response)), arguments["num_words"], arguments["relation"])


def _number_paragraphs(response: str, arguments: Arguments) -> bool:
    """Exactly so many, with *** between them; before the first and behind the last is allowed."""
    found = _without_empty_ends([part.strip() for part in response.split("***")])
    return all(found) and len(found) == int(arguments["num_paragraphs"])


def _first_word_of_paragraph(response: str, arguments: Arguments) -> bool:
    """Exactly so many paragraphs, with an empty line between them, and the nth begins with a
    word."""
    found, place = response.split("\n\n"), int(arguments["nth_paragraph"])
    count = sum(bool(paragraph.strip()) for paragraph in found)
    if count != int(arguments["num_paragraphs"]) or not 1 <= place <= count:
        return False
    first = (found[place - 1].split() or [""])[0].lstrip("'\"")
    return re.split(r"[.,?!'\"]", first)[0].lower() == str(arguments["first_word"]).lower()


# -- contents and format ---------------------------------------------------------------------------


def _placeholders(response: str, arguments: Arguments) -> bool:
    """At least so many like [address]."""
    return len(re.findall(r"\[.*?\]", response)) >= int(arguments["num_placeholders"])


def _postscript(response: str, arguments: Arguments) -> bool:
    marker = str(arguments["postscript_marker"]).strip()
    pattern = _POSTSCRIPTS.get(marker, re.escape(marker.lower()))
    return re.search(pattern, response.lower()) is not None


def _bullets(response: str, arguments: Arguments) -> bool:
    """Exactly so many lines that begin with * or -; not those that begin with **."""
    found = re.findall(r"^\s*(?:\*[^*]|-).*$", response, re.MULTILINE)
    return len(found) == int(arguments["num_bullets"])


def _one_of_the_answers(response: str, arguments: Arguments) -> bool:
    return any(answer in response for answer in _ANSWERS)


def _highlights(response: str, arguments: Arguments) -> bool:
    """At least so many *like this* or **like this**, which are not empty."""
    single = [part.strip("*") for part in re.findall(r"\*[^\n*]*\*", response)]
    double = re.findall(r"\*\*([^\n*]*)\*\*", response)
    return sum(bool(part.strip()) for part in (*single, *double)) >= int(
        arguments["num_highlights"]
    )


def _sections(response: str, arguments: Arguments) -> bool:
    """At least so many, each begun by the marker and a number."""
    marker = re.escape(str(arguments["section_spliter"]).strip())
    return len(re.findall(rf"{marker}\s?\d+", response)) >= int(arguments["num_sections"])


def _is_json(response: str, arguments: Arguments) -> bool:
    """All of it, perhaps between ``` marks."""
    inner = re.sub(r"^```(?:json)?", "", response.strip(), flags=re.IGNORECASE)
    try:
        json.loads(inner.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(response: str, arguments: Arguments) -> bool:
    """One like <<this>>, which is not empty."""
    return any(t.strip("<>").strip() for t in re.findall(r"<<[^\n]+>>", response))


# -- as a whole ------------------------------------------------------------------------------------


def _two_responses(response: str, arguments: Arguments) -> bool:
    """Two that differ, with ****** between them."""
    found = _without_empty_ends([part.strip() for part in response.split("******")])
    return len(found) == 2 and all(found) and found[0] != found[1]


def _repeats_prompt(response: str, arguments: Arguments) -> bool:
    wanted = str(arguments["prompt_to_repeat"]).strip().lower()
    return response.strip().lower().startswith(wanted)


def _ends_with(response: str, arguments: Arguments) -> bool:
    said = response.strip().strip('"').lower()
    return said.endswith(str(arguments["end_phrase"]).strip().lower())


def _no_comma(response: str, arguments: Arguments) -> bool:
    return "," not in response


def _in_quotes(response: str, arguments: Arguments) -> bool:
    said = response.strip()
    return len(said) > 1 and said[0] == said[-1] == '"'


def _without_empty_ends(parts: list[str]) -> list[str]:
    begin = 1 if parts and not parts[0] else 0
    end = len(parts) - (1 if len(parts) > begin and not parts[-1] else 0)
    return parts[begin:end]


CHECKS: Mapping[str, Check] = {
    "keywords:existence": _holds_keywords,
    "keywords:frequency": _keyword_frequency,
    "keywords:forbidden_words": _no_forbidden_words,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _language,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:number_words": _number_words,
    "length_constraints:nth_paragraph_first_word": _first_word_of_paragraph,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _one_of_the_answers,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _is_json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats_prompt,
    "startend:end_checker": _ends_with,
    "startend:quotation": _in_quotes,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _all_capitals,
    "change_case:english_lowercase": _all_lowercase,
    "punctuation:no_comma": _no_comma,
}
