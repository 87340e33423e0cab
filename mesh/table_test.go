package mesh

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// A table must be what a map would be after any sequence of changes, and must leave its predecessors alone.
func TestTablesAgreeWithMaps(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var tab *table[int]
	model := map[string]*int{}
	for round := range 300 {
		before, beforeModel := tab, maps.Clone(model)
		changes := map[string]*int{}
		for range rng.IntN(8) {
			k := fmt.Sprint(rng.IntN(40))
			if rng.IntN(3) == 0 {
				changes[k] = nil
				delete(model, k)
			} else {
				changes[k] = ptr(rng.IntN(5))
				model[k] = changes[k]
			}
		}
		tab = tab.with(changes)
		check(t, round, tab, model)
		check(t, round, before, beforeModel)
	}
}

func check(t *testing.T, round int, tab *table[int], model map[string]*int) {
	t.Helper()
	if tab.len() != len(model) {
		t.Fatalf("round %d: %d entries, want %d", round, tab.len(), len(model))
	}
	for k, v := range model {
		if tab.get(k) != v {
			t.Fatalf("round %d: %s is %v, want %v", round, k, tab.get(k), v)
		}
	}
	if tab != nil && !slices.IsSorted(tab.keys) {
		t.Fatalf("round %d: not sorted: %v", round, tab.keys)
	}
}

func TestAnUnchangedTableIsTheSameTable(t *testing.T) {
	v := ptr(1)
	a := (*table[int])(nil).with(map[string]*int{"a": v})
	if b := a.with(map[string]*int{"a": v, "gone": nil}); b != a {
		t.Error("a change that changes nothing made another table")
	}
	var keys []string
	for k := range a.with(map[string]*int{"aa": v, "ab": v, "b": v}).prefix("a") {
		keys = append(keys, k)
	}
	if !slices.Equal(keys, []string{"a", "aa", "ab"}) {
		t.Errorf("prefix a: %v", keys)
	}
}
