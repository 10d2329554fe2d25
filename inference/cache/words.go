package cache

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// saying is what a text says, as far as two texts must agree in it before anybody asks
// whether they are alike.
type saying struct {
	// plain is the text without forms: politeness, contractions, the place of "is" in a
	// question, white space, the first letter's case, the last sign.
	plain string
	// marks are the words that two ways of saying the same share, in their order.
	marks string
	// words are all words, folded, without forms.
	words string
}

// sep stands between words, and is in none.
const sep = "\x00"

// sayingOf returns what a text says, unless nothing can be known of it.
func sayingOf(text string) (saying, bool) {
	if !utf8.ValidString(text) || strings.TrimSpace(text) == "" || strings.Contains(text, sep) {
		return saying{}, false
	}
	words, marks := wordsOf(text)
	return saying{plainOf(text), strings.Join(marks, sep), strings.Join(words, sep)}, true
}

// agree reports whether two texts may be alike, cheaply.
func agree(a, b saying, paraphrases bool) bool {
	return a.plain == b.plain || paraphrases && a.marks == b.marks
}

// alike reports whether the words of two texts allow that they mean the same. That they
// do is for their vectors to say, which are blind to what is looked for here: the
// smaller a change, the more alike they find it, and "merge a into b" is nearer to
// "merge b into a" than to most ways of saying it.
func alike(a, b saying, paraphrases bool) bool {
	if a.plain == b.plain {
		return true
	}
	return paraphrases && a.marks == b.marks && isParaphrase(strings.Split(a.words, sep), strings.Split(b.words, sep))
}

// leastDifferent is how many words differ between two ways of saying the same: where
// fewer do, it is more often another question.
const leastDifferent = 3

// isParaphrase reports whether two texts share words in one order, and differ in enough
// of the others, at different places.
func isParaphrase(a, b []string) bool {
	sharedA := slices.DeleteFunc(slices.Clone(a), func(w string) bool { return !slices.Contains(b, w) })
	sharedB := slices.DeleteFunc(slices.Clone(b), func(w string) bool { return !slices.Contains(a, w) })
	if !slices.Equal(sharedA, sharedB) {
		return false
	}
	if len(a)-len(sharedA)+len(b)-len(sharedB) < leastDifferent {
		return false
	}
	if len(a) == len(b) { // word for word
		same := 0
		for i := range a {
			if a[i] == b[i] {
				same++
			}
		}
		if 2*same >= len(a) {
			return false
		}
	}
	return !opposed(a, b) && !opposed(b, a)
}

// opposed reports whether a word of a is one of b with a prefix that turns it round.
func opposed(a, b []string) bool {
	for _, w := range a {
		for _, prefix := range []string{"un", "dis", "non", "de", "in", "im", "ir", "il", "mis", "re", "anti", "a"} {
			if rest, ok := strings.CutPrefix(w, prefix); ok && len(rest) > 2 && slices.Contains(b, rest) {
				return true
			}
		}
	}
	return false
}

// plainOf returns a text without forms. What has lines, code or tabs is left as it is.
func plainOf(text string) string {
	text = strings.TrimSpace(strings.ReplaceAll(text, "’", "'"))
	if strings.ContainsFunc(text, func(c rune) bool { return c == '`' || unicode.IsControl(c) }) {
		return text
	}
	words := strings.Fields(text)
	words[0] = lowerFirst(words[0])
	words = unpolite(words)
	words[0] = lowerFirst(words[0])
	var out []string
	for _, w := range words {
		if long, ok := contractions[w]; ok {
			out = append(out, strings.Fields(long)...)
		} else {
			out = append(out, w)
		}
	}
	last := len(out) - 1
	if asks(out[0]) {
		out[last] = strings.TrimRight(out[last], "?.")
		out = slices.DeleteFunc(out, func(w string) bool { return w == "is" || w == "are" || w == "" })
	} else if w := strings.TrimRight(out[last], "."); w != "" {
		out[last] = w
	}
	return strings.Join(out, " ")
}

// lowerFirst lowers the first letter of a word that is not written in capitals.
func lowerFirst(w string) string {
	first, size := utf8.DecodeRuneInString(w)
	if len(w) > size && w[size:] != strings.ToLower(w[size:]) {
		return w
	}
	return string(unicode.ToLower(first)) + w[size:]
}

// Ways of asking that change nothing of what is asked, longest first.
var (
	openings = [][]string{
		{"could", "you", "please", "tell", "me"}, {"can", "you", "please", "tell", "me"}, {"could", "you", "tell", "me"}, {"can", "you", "tell", "me"},
		{"could", "you", "please"}, {"can", "you", "please"}, {"would", "you", "please"}, {"please", "tell", "me"}, {"tell", "me"}, {"please"}, {"kindly"},
		{"hi"}, {"hello"}, {"hey"}, {"hi", "there"}, {"hello", "there"},
	}
	endings = [][]string{{"thank", "you"}, {"thanks"}, {"please"}}
)

// unpolite returns words without what is only polite; at least one is left.
func unpolite(words []string) []string {
	matches := func(some, form []string) bool {
		if len(some) < len(form) {
			return false
		}
		for i, w := range form {
			if strings.TrimRight(strings.ToLower(some[i]), ",.!?") != w {
				return false
			}
		}
		return true
	}
	for again := true; again; {
		again = false
		for _, form := range openings {
			if len(words) > len(form) && matches(words, form) {
				words, again = words[len(form):], true
				break
			}
		}
	}
	for again := true; again; {
		again = false
		for _, form := range endings {
			if n := len(words) - len(form); n > 0 && matches(words[n:], form) {
				words, again = slices.Clone(words[:n]), true
				words[n-1] = strings.TrimRight(words[n-1], ",")
				if words[n-1] == "" && n > 1 {
					words = words[:n-1]
				}
				break
			}
		}
	}
	return words
}

// asks reports whether a text that begins so is a question, with or without its sign.
func asks(word string) bool {
	return slices.Contains([]string{"what", "who", "whom", "whose", "which", "where", "when", "why", "how"}, word)
}

var contractions = map[string]string{
	"what's": "what is", "who's": "who is", "where's": "where is", "when's": "when is", "how's": "how is", "that's": "that is", "it's": "it is", "there's": "there is",
	"don't": "do not", "doesn't": "does not", "didn't": "did not", "isn't": "is not", "aren't": "are not", "wasn't": "was not", "weren't": "were not", "can't": "cannot",
	"couldn't": "could not", "won't": "will not", "wouldn't": "would not", "shouldn't": "should not", "mustn't": "must not", "hasn't": "has not", "haven't": "have not",
	"hadn't": "had not", "I'm": "I am", "i'm": "i am", "I've": "I have", "i've": "i have", "I'll": "I will", "i'll": "i will", "you're": "you are", "we're": "we are", "they're": "they are",
}

// wordsOf returns the words of a text, folded, without those that say little, and those
// among all that are marks: whatever has a digit, a sign inside, or a capital where no
// sentence begins; what is quoted, or in another script; and the words of markWords.
func wordsOf(text string) (words, marks []string) {
	begins, quoted := true, rune(0)
	for _, field := range strings.Fields(strings.ReplaceAll(text, "’", "'")) {
		for {
			c, size := utf8.DecodeRuneInString(field)
			end, opens := quotes[c]
			if quoted != 0 || !opens {
				break
			}
			quoted, field = end, field[size:]
		}
		bare := strings.TrimFunc(field, func(c rune) bool { return strings.ContainsRune(".,;:!?()[]{}\"'`«»“”‘…–—", c) })
		inside := quoted != 0
		if inside && strings.ContainsRune(field, quoted) {
			quoted = 0
		}
		ends := strings.HasSuffix(strings.TrimRight(field, `"')]}”»`), ".") || strings.ContainsAny(field, "?!:")
		if bare == "" {
			if !inside && strings.ContainsFunc(field, func(c rune) bool { return !strings.ContainsRune(".,;:!?…", c) }) {
				marks = append(marks, field)
			}
			begins = begins || ends
			continue
		}
		long, ok := contractions[strings.ToLower(bare)]
		if !ok || inside {
			long = bare
		}
		for _, w := range strings.Fields(long) {
			folded := strings.ToLower(w)
			switch {
			case inside || w != "I" && isMark(w, begins):
				marks = append(marks, w)
			case markWords[folded]:
				marks = append(marks, folded)
			}
			if inside || !littleWords[folded] {
				words = append(words, folded)
			}
			begins = false
		}
		begins = ends
	}
	return words, marks
}

// quotes are the signs that open a quotation, and that which closes it.
var quotes = map[rune]rune{'"': '"', '“': '”', '«': '»', '`': '`', '\'': '\'', '‘': '\''}

// isMark reports whether a word is a mark by how it is written.
func isMark(w string, begins bool) bool {
	capitals := 0
	for i, c := range w {
		switch {
		case c == '\'' && i > 0:
		case !unicode.Is(unicode.Latin, c):
			return true
		case unicode.IsUpper(c):
			capitals++
		}
	}
	return capitals > 1 || capitals == 1 && !begins
}

func set(texts ...string) map[string]bool {
	all := map[string]bool{}
	for _, text := range texts {
		for w := range strings.FieldsSeq(text) {
			all[w] = true
		}
	}
	return all
}

// littleWords say little of what is asked.
var littleWords = set("a an the of is are am was were be been being do does did please kindly hi hello hey thanks thank")

// markWords turn a text round, or point elsewhere, when they change: negations, how
// much, how many, who, where to, when, opposites.
var markWords = set(
	"not no never none nothing nobody nowhere neither nor without cannot except excluding unless instead but only just hardly barely rather than if else and or vs versus",
	"nicht kein keine keinen nie niemals ohne nein ne pas jamais sans non aucun aucune nunca jamás sin ningún ninguna mai nessuno senza niet geen nooit zonder não nem sem",
	"all any some every each most least more less fewer many much few both either half quarter double twice triple dozen enough too",
	"zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion trillion",
	"first second third fourth fifth last next previous current latest earliest newest oldest new old final initial",
	"must may might should shall can could will would need",
	"me my mine myself you your yours he him his she her hers it its we us our ours they them their theirs this that these those here there who whom whose",
	"from into onto in out on off up down over under above below before after since until till between during within inside outside with against at via through toward towards upon per",
	"today tomorrow yesterday now ago later earlier soon always sometimes often rarely once again daily weekly monthly yearly morning afternoon evening night noon midnight",
	"monday tuesday wednesday thursday friday saturday sunday january february march april may june july august september october november december spring summer autumn fall winter",
	"second seconds minute minutes hour hours day days week weeks month months year years",
	"max maximum min minimum highest lowest higher lower high low largest smallest larger smaller large small big biggest best worst better worse good bad greater great top bottom long short longer shorter fast slow faster slower",
	"same other another different opposite true false yes left right north south east west front back",
	"enable disable enabled disabled start stop started stopped begin end open close opened closed add remove added removed delete create deleted created increase decrease increased decreased raise reduce",
	"allow deny allowed denied forbid forbidden block unblock permit accept reject approve refuse grant revoke buy sell lock unlock show hide include exclude connect disconnect import export upload download",
	"encrypt decrypt encode decode install uninstall login logout subscribe unsubscribe credit debit send receive lend borrow push pull read write save discard keep drop pass fail win lose lost won give take turn switch",
	"male female man woman men women boy girl son daughter father mother brother sister husband wife north south safe unsafe legal illegal valid invalid possible impossible public private local remote internal external",
	"advantages disadvantages pros cons benefits risks benefit risk advantage disadvantage cause effect causes effects why when where",
)
