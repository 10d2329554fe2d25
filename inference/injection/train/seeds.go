package main

import (
	"embed"
	"fmt"
	"math/rand/v2"
	"strings"

	"creto.dev/inference/injection"
)

//go:embed seeds
var seedFiles embed.FS

// perSeed is how many texts a line of seeds becomes.
const perSeed = 16

// loadSeeds returns the project's own texts. All texts of a line are one group.
func loadSeeds() ([]*set, error) {
	var sets []*set
	for _, s := range []*set{
		{name: "seeds/user_attack", attack: true},
		{name: "seeds/document_attack", attack: true, from: injection.Document},
		{name: "seeds/user_benign"},
		{name: "seeds/document_benign", from: injection.Document},
	} {
		data, err := seedFiles.ReadFile(s.name + ".txt")
		if err != nil {
			return nil, err
		}
		s.trained = true
		random := rand.New(rand.NewPCG(7, uint64(len(sets))))
		for n, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
			if strings.HasPrefix(line, "# ") {
				continue
			}
			seen := map[string]bool{}
			for range perSeed {
				var text string
				for rest := line; rest != ""; {
					more, left, err := expand(rest, random)
					if err != nil {
						return nil, fmt.Errorf("%s: line %d: %w", s.name, n+1, err)
					}
					text += more
					if rest = left; rest != "" { // a bar outside of any choice
						text, rest = text+rest[:1], rest[1:]
					}
				}
				if text = strings.Join(strings.Fields(text), " "); !seen[text] {
					seen[text] = true
					s.items = append(s.items, item{text: text, group: n})
				}
			}
		}
		sets = append(sets, s)
	}
	return sets, nil
}

// expand takes one choice of each {a|b} up to the end, or up to what ends the choice
// that the text is in.
func expand(text string, random *rand.Rand) (out, rest string, err error) {
	var b strings.Builder
	for text != "" {
		i := strings.IndexAny(text, "{|}")
		if i < 0 {
			return b.String() + text, "", nil
		}
		b.WriteString(text[:i])
		if text[i] != '{' {
			return b.String(), text[i:], nil
		}
		var choices []string
		rest := "|" + text[i+1:]
		for strings.HasPrefix(rest, "|") {
			var choice string
			if choice, rest, err = expand(rest[1:], random); err != nil {
				return "", "", err
			}
			choices = append(choices, choice)
		}
		if !strings.HasPrefix(rest, "}") {
			return "", "", fmt.Errorf("a choice is not closed: %q", text)
		}
		b.WriteString(choices[random.IntN(len(choices))])
		text = rest[1:]
	}
	return b.String(), "", nil
}
