package mesh

// SelectorMatches reports whether labels carry every pair of selector. An empty selector matches all.
func SelectorMatches(selector, labels map[string]string) bool {
	if len(selector) > len(labels) {
		return false
	}
	for k, v := range selector {
		if l, ok := labels[k]; !ok || l != v {
			return false
		}
	}
	return true
}

// label is one pair, the unit of the selector indexes.
type label struct{ key, value string }

// selectorIndex finds the selectors that match a set of labels without trying each: every entry is
// filed under the rarest of its selector's pairs.
type selectorIndex[T any] struct {
	byLabel map[label][]selected[T]
	always  []selected[T] // empty selectors
}

type selected[T any] struct {
	order    int
	selector map[string]string
	value    T
}

func newSelectorIndex[T any](items []T, selector func(T) map[string]string) *selectorIndex[T] {
	count := map[label]int{}
	for _, it := range items {
		for k, v := range selector(it) {
			count[label{k, v}]++
		}
	}
	x := &selectorIndex[T]{byLabel: make(map[label][]selected[T], len(count))}
	for i, it := range items {
		s := selector(it)
		e := selected[T]{i, s, it}
		if len(s) == 0 {
			x.always = append(x.always, e)
			continue
		}
		var best label
		n := -1
		for k, v := range s {
			if c := count[label{k, v}]; n < 0 || c < n || c == n && k < best.key {
				best, n = label{k, v}, c
			}
		}
		x.byLabel[best] = append(x.byLabel[best], e)
	}
	return x
}

// find calls f with each item whose selector matches, in no particular order; order is the
// item's position in the slice that the index was made from.
func (x *selectorIndex[T]) find(labels map[string]string, f func(order int, item T)) {
	for _, e := range x.always {
		f(e.order, e.value)
	}
	for k, v := range labels {
		for _, e := range x.byLabel[label{k, v}] {
			if SelectorMatches(e.selector, labels) {
				f(e.order, e.value)
			}
		}
	}
}
