package manifest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/mesh"
)

// Error is one mistake in a manifest.
type Error struct {
	File     string   // as the caller named it; empty when it is not from a file
	Line     int      // 1-based; 0 when unknown
	Document int      // 1-based number of the document in the file; 0 when there is only one
	Object   mesh.Key // as far as it is known
	Field    string   // "spec.http[0].route[0].weight"; empty when it is not about a field
	Message  string   // what is wrong and what to do
}

// Error gives "bookinfo.yaml:12: VirtualService default/reviews: spec.http[0].weigth: unknown field; did you mean "weight"?".
func (e *Error) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File)
		if e.Line > 0 {
			fmt.Fprintf(&b, ":%d", e.Line)
		}
		b.WriteString(": ")
	} else if e.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", e.Line)
	}
	if e.Document > 0 {
		fmt.Fprintf(&b, "document %d: ", e.Document)
	}
	if e.Object.Kind != "" {
		if e.Object.Name == "" {
			b.WriteString(e.Object.Kind)
		} else {
			b.WriteString(e.Object.String())
		}
		b.WriteString(": ")
	}
	if e.Field != "" {
		b.WriteString(e.Field)
		b.WriteString(": ")
	}
	b.WriteString(e.Message)
	return b.String()
}

// Errors are all mistakes of a manifest, in the order of the text.
type Errors []*Error

// Error gives one line for each mistake.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, err := range e {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As find an [*Error].
func (e Errors) Unwrap() []error {
	out := make([]error, len(e))
	for i, err := range e {
		out[i] = err
	}
	return out
}

// err returns nil when there are none.
func (e Errors) err() error {
	if len(e) == 0 {
		return nil
	}
	slices.SortStableFunc(e, func(a, b *Error) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), strings.Compare(a.Field, b.Field))
	})
	return slices.CompactFunc(e, func(a, b *Error) bool { return *a == *b })
}

// Warning is something that is accepted and should still be looked at: a deprecated
// field, one without effect, a kind that nobody here reads.
type Warning struct{ Error }

// String is like Error's.
func (w Warning) String() string { return w.Error.Error() }

// Nearest finds the known word that a misspelt one probably means: at most a third of it differs. Empty when none is near.
func Nearest(word string, known []string) string {
	best, distance := "", len(word)/3+1
	for _, k := range known {
		if strings.EqualFold(k, word) {
			return k
		}
		if d := editDistance(strings.ToLower(word), strings.ToLower(k), distance); d <= distance && (best == "" || d < distance) {
			best, distance = k, d
		}
	}
	return best
}

// editDistance counts the insertions, deletions, replacements and swaps of neighbours between a and b; more than
// limit is reported as limit+1.
func editDistance(a, b string, limit int) int {
	if len(a)-len(b) > limit || len(b)-len(a) > limit {
		return limit + 1
	}
	before, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev, cur = prev, cur, before
	}
	return prev[len(b)]
}
