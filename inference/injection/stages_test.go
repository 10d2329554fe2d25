package injection

import (
	"os"
	"testing"
)

// BenchmarkStages measures the parts, and the rules without their prefilter.
func BenchmarkStages(b *testing.B) {
	data, err := os.ReadFile("../../docs/threat-model.md")
	if err != nil {
		b.Fatal(err)
	}
	d := New()
	for name, size := range map[string]int{"1.4 KB": 1400, "8 KB": 8 << 10} {
		text := string(data[:size])
		var n normalised
		n.normalise(text)
		run := func(stage string, do func()) {
			b.Run(stage+"/"+name, func(b *testing.B) {
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					do()
				}
			})
		}
		var f features
		m := d.rules.newMatcher()
		run("normalise", func() { n.normalise(text) })
		run("rules", func() { d.rules.match(m, n.text, User, func(string) {}) })
		run("rules without prefilter", func() {
			for i := range d.rules.table {
				d.rules.patterns[i]().FindIndex(n.text)
			}
		})
		run("classifier", func() { f.read(n.text); d.weights.heads[User].score(&f, User) })
	}
}
