// Command train makes the embedded weights of package injection from the seeds
// beside it and from sets outside of the repository, and measures the detector.
//
//	go run ./inference/injection/train -data DIR -out inference/injection/weights.bin
//	go run ./inference/injection/train -eval -data DIR
//
// DIR holds JSON arrays of strings. A file whose name says benign, safe or
// notinject must pass; one whose name says bipia, indirect or document holds attacks
// in documents; any other holds attacks in a user's turn.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"creto.dev/inference/injection"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "train:", err)
		}
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("train", flag.ContinueOnError)
	dir := flags.String("data", "", "directory of the sets")
	file := flags.String("out", "", "where the weights are written")
	eval := flags.Bool("eval", false, "measure rather than train")
	folds := flags.Int("folds", 10, "how many folds of cross-validation")
	taint := flags.Int64("taint", int64(injection.DefaultTaint), "risk that taints, in thousandths")
	block := flags.Int64("block", int64(injection.DefaultBlock), "risk that blocks")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *dir == "" {
		_, err := fmt.Fprintln(out, "skipped: there are no sets to read. Say where they are: make eval-injection DATA=DIR")
		return err
	}
	sets, err := loadSets(*dir)
	if err != nil {
		return err
	}
	seeds, err := loadSeeds()
	if err != nil {
		return err
	}
	documents, err := loadLibrary()
	if err != nil {
		return err
	}
	seeds = append(seeds, documents)
	m := &measurement{taint: injection.Risk(*taint), block: injection.Risk(*block)}
	if *eval {
		return m.evaluate(out, sets, seeds, *folds)
	}
	weights := m.train(sets, seeds, *folds)
	data, err := weights.MarshalBinary()
	if err != nil {
		return err
	}
	if *file == "" {
		return errors.New("-out: where the weights are written is required")
	}
	return os.WriteFile(*file, data, 0o600)
}

// set is one file of texts.
type set struct {
	name   string
	attack bool
	from   injection.Source // where its attacks stand
	// trained says that the embedded weights have seen it.
	trained bool
	items   []item
}

// item is a text with the group that it must not be parted from.
type item struct {
	text  string
	group int
}

// trainedOn are the sets that the embedded weights are made from.
func trainedOn(name string) bool {
	return name == "garak_dan" || name == "bipia_text" || name == "wildguard_benign"
}

func loadSets(dir string) ([]*set, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	var sets []*set
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var texts []string
		if err := json.Unmarshal(data, &texts); err != nil {
			return nil, fmt.Errorf("%s is no JSON array of strings: %w", file, err)
		}
		s := &set{name: strings.TrimSuffix(filepath.Base(file), ".json"), attack: true}
		lower := strings.ToLower(s.name)
		for _, word := range []string{"benign", "safe", "notinject"} {
			s.attack = s.attack && !strings.Contains(lower, word)
		}
		for _, word := range []string{"bipia", "indirect", "document"} {
			if strings.Contains(lower, word) {
				s.from = injection.Document
			}
		}
		s.trained = trainedOn(s.name)
		for _, text := range texts {
			s.items = append(s.items, item{text: text})
		}
		sets = append(sets, s)
	}
	if len(sets) == 0 {
		return nil, fmt.Errorf("%s holds no *.json", dir)
	}
	return sets, nil
}
