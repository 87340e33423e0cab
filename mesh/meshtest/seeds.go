package meshtest

import (
	"iter"
	"os"
	"strconv"
	"strings"
	"testing"
)

// Seeds are those of the random histories that a test plays: the first few usually, else what WEFT_HISTORIES says: "1000" of them, or "20-30"
// for the ones from 20 until before 30.
func Seeds(t testing.TB, usual int) iter.Seq[uint64] {
	t.Helper()
	text := os.Getenv("WEFT_HISTORIES")
	if text == "" {
		text = strconv.Itoa(usual)
	}
	first, end, span := strings.Cut(text, "-")
	if !span {
		first, end = "0", text
	}
	from, err := strconv.ParseUint(first, 10, 64)
	to, err2 := strconv.ParseUint(end, 10, 64)
	if err != nil || err2 != nil || from >= to {
		t.Fatalf("WEFT_HISTORIES=%s: want a number of histories, or the span of their seeds, such as 20-30", text)
	}
	return func(yield func(uint64) bool) {
		for seed := from; seed < to && yield(seed); seed++ {
		}
	}
}
