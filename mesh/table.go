package mesh

import (
	"iter"
	"slices"
	"sort"
	"strings"
)

// table is an immutable map from strings to pointers, sorted by key. It is two
// flat slices: at the sizes of a mesh (10,000 entries) copying them for one change costs
// a few microseconds, less than any tree, and reading needs no hashing.
// The zero table is empty. A nil *table is empty too.
type table[T any] struct {
	keys []string
	vals []*T
}

func (t *table[T]) get(key string) *T {
	if t == nil {
		return nil
	}
	if i, ok := slices.BinarySearch(t.keys, key); ok {
		return t.vals[i]
	}
	return nil
}

func (t *table[T]) len() int {
	if t == nil {
		return 0
	}
	return len(t.keys)
}

// values returns the values in the order of their keys. The slice is shared: read only.
func (t *table[T]) values() []*T {
	if t == nil {
		return nil
	}
	return t.vals
}

// prefix yields the entries whose key starts with prefix, in order.
func (t *table[T]) prefix(prefix string) iter.Seq2[string, *T] {
	return func(yield func(string, *T) bool) {
		if t == nil {
			return
		}
		for i := sort.SearchStrings(t.keys, prefix); i < len(t.keys) && strings.HasPrefix(t.keys[i], prefix); i++ {
			if !yield(t.keys[i], t.vals[i]) {
				return
			}
		}
	}
}

// with returns a table with the changes applied; a nil value deletes its key. It returns
// t itself when nothing differs.
func (t *table[T]) with(changes map[string]*T) *table[T] {
	if t == nil {
		t = &table[T]{}
	}
	keys := make([]string, 0, len(changes))
	added, removed := 0, 0
	for k, v := range changes {
		old := t.get(k)
		if old == v {
			continue
		}
		if old == nil {
			added++
		} else if v == nil {
			removed++
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return t
	}
	if added == 0 && removed == 0 { // same keys: share them
		next := &table[T]{keys: t.keys, vals: slices.Clone(t.vals)}
		for _, k := range keys {
			i, _ := slices.BinarySearch(t.keys, k)
			next.vals[i] = changes[k]
		}
		return next
	}
	slices.Sort(keys)
	n := len(t.keys) + added - removed
	next := &table[T]{keys: make([]string, 0, n), vals: make([]*T, 0, n)}
	from := 0
	for _, k := range keys {
		i := from + sort.SearchStrings(t.keys[from:], k)
		next.keys = append(next.keys, t.keys[from:i]...)
		next.vals = append(next.vals, t.vals[from:i]...)
		if i < len(t.keys) && t.keys[i] == k {
			i++
		}
		if v := changes[k]; v != nil {
			next.keys = append(next.keys, k)
			next.vals = append(next.vals, v)
		}
		from = i
	}
	next.keys = append(next.keys, t.keys[from:]...)
	next.vals = append(next.vals, t.vals[from:]...)
	return next
}
