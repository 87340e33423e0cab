package mesh

import (
	"slices"
	"strings"
	"sync"
)

// gatewayIndex is shared by all snapshots between which no Gateway changed.
type gatewayIndex struct {
	sorted    []*Gateway
	selectors *selectorIndex[*Gateway]
	keys      []string // the label keys that some selector mentions, sorted
	found     sync.Map // the values of keys -> []*Gateway
}

func newGatewayIndex(all *table[Gateway], prev *gatewayIndex) *gatewayIndex {
	sorted := slices.Clone(all.values())
	slices.SortFunc(sorted, func(a, b *Gateway) int { return byPrecedence(&a.Meta, &b.Meta) })
	x := &gatewayIndex{sorted: sorted}
	x.selectors = newSelectorIndex(sorted, func(g *Gateway) map[string]string { return g.Spec.Selector })
	for _, g := range sorted {
		for k := range g.Spec.Selector {
			x.keys = append(x.keys, k)
		}
	}
	slices.Sort(x.keys)
	x.keys = slices.Compact(x.keys)
	if prev != nil && slices.Equal(prev.keys, x.keys) {
		prev.found.Range(func(k, v any) bool {
			labels := map[string]string{}
			for i, value := range strings.Split(k.(string), "\x00") {
				if i < len(x.keys) && value != "\x01" {
					labels[x.keys[i]] = value
				}
			}
			if old := v.([]*Gateway); slices.Equal(old, x.find(labels)) {
				x.found.Store(k, old)
			}
			return true
		})
	}
	return x
}

func (x *gatewayIndex) find(labels map[string]string) []*Gateway {
	var at []int
	x.selectors.find(labels, func(i int, _ *Gateway) { at = append(at, i) })
	slices.Sort(at)
	var out []*Gateway
	for _, i := range at {
		out = append(out, x.sorted[i])
	}
	return out
}

// of returns the gateways whose selector matches labels, whatever namespace they
// are in, in order of precedence (Istio API: Gateway.selector).
func (x *gatewayIndex) of(labels map[string]string) []*Gateway {
	if len(x.sorted) == 0 {
		return nil
	}
	var key strings.Builder
	for i, k := range x.keys {
		if i > 0 {
			key.WriteByte(0)
		}
		if v, ok := labels[k]; ok {
			key.WriteString(v)
		} else {
			key.WriteByte(1)
		}
	}
	if v, ok := x.found.Load(key.String()); ok {
		return v.([]*Gateway)
	}
	v, _ := x.found.LoadOrStore(key.String(), x.find(labels))
	return v.([]*Gateway)
}
