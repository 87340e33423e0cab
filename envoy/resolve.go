package envoy

import (
	"slices"
	"strings"
)

// Resolve says what a proxy means by a name that it asked for: a Resource in its Sets, whose Name may be another. It is nil when
// the Sets hold nothing for it, as for a name that is not in the Demand, or that is Nonsense.
func (w *World) Resolve(p Proxy, t Type, name string) *Resource {
	for _, s := range w.Sets(p) {
		i, found := slices.BinarySearchFunc(s.Resources[t], name, func(r *Resource, n string) int { return strings.Compare(r.Name, n) })
		if found {
			return s.Resources[t][i]
		}
	}
	return nil
}

// Means classifies a name that a proxy asks for, before or after it is in the proxy's Demand.
func (w *World) Means(p Proxy, t Type, name string) Meaning {
	if w.Resolve(p, t, name) != nil {
		return Known
	}
	return Nonsense
}
