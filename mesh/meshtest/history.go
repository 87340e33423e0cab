package meshtest

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/mesh"
)

// Event is one change of a few objects.
type Event struct {
	Apply  []runtime.Object // to be copied before it is given away
	Remove []mesh.Key       // none of Apply
	Chance uint64           // a seed for what else happens, so that leaving other events out does not change it
}

// String is the event as a person would write it down.
func (e Event) String() string {
	var b strings.Builder
	for _, k := range e.Remove {
		fmt.Fprintln(&b, "without", k)
	}
	for _, o := range e.Apply {
		text, _ := yaml.Marshal(o)
		fmt.Fprintf(&b, "with\n%s", text)
	}
	return b.String()
}

// Rand gives numbers that depend on the event alone.
func (e Event) Rand() *rand.Rand { return rand.New(rand.NewPCG(e.Chance, 1)) }

// History makes up n events; the same seed gives the same ones. Pool holds objects that are mixed in.
func History(t testing.TB, seed uint64, n int, pool []runtime.Object) []Event {
	g := &gossip{t: t, Rand: rand.New(rand.NewPCG(seed, 7)), pool: pool}
	g.topics = g.Perm(topics)[:1+g.IntN(topics)] // what seldom meets among much meets often among little
	there := map[mesh.Key]bool{}
	var events []Event
	for range n {
		e := Event{Chance: g.Uint64()}
		touched := map[mesh.Key]bool{}
		for range 1 + g.IntN(3) {
			if g.IntN(3) == 0 && len(there) > 0 {
				if key := pick(g, slices.SortedFunc(maps.Keys(there), compareKeys)...); !touched[key] {
					touched[key] = true
					delete(there, key)
					e.Remove = append(e.Remove, key)
				}
				continue
			}
			o := g.object()
			key, err := mesh.KeyOf(o)
			if err != nil {
				t.Fatal(err)
			}
			if !touched[key] {
				touched[key], there[key] = true, true
				e.Apply = append(e.Apply, o)
			}
		}
		events = append(events, e)
	}
	return events
}

func compareKeys(a, b mesh.Key) int {
	return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// Shortest leaves out of events, at which wrong is true, what can be left out with wrong still being true.
func Shortest(events []Event, wrong func([]Event) bool) []Event {
	for size := len(events) / 2; size > 0; size /= 2 {
		for at := 0; at+size <= len(events); {
			if rest := slices.Concat(events[:at], events[at+size:]); wrong(rest) {
				events = rest
			} else {
				at++
			}
		}
	}
	for i := range events {
		for j := 0; j < len(events[i].Apply); {
			try := slices.Clone(events)
			if try[i].Apply = slices.Delete(slices.Clone(try[i].Apply), j, j+1); wrong(try) {
				events = try
			} else {
				j++
			}
		}
		try := slices.Clone(events)
		if try[i].Remove = nil; wrong(try) {
			events = try
		}
	}
	return events
}

// Present is what there is when events have happened.
type Present map[mesh.Key]runtime.Object

// Take lets an event happen and returns copies of what it applies. A MeshConfig that cannot be read is not taken in: the last good one
// stays in force.
func (p Present) Take(e Event) (apply []mesh.Object) {
	for _, k := range e.Remove {
		delete(p, k)
	}
	for _, o := range e.Apply {
		apply = append(apply, mesh.Object{Object: o.DeepCopyObject()})
		if c, ok := o.(*corev1.ConfigMap); ok {
			if _, _, err := mesh.ParseMeshConfig(c.Data["mesh"]); err != nil {
				continue
			}
		}
		if key, err := mesh.KeyOf(o); err == nil {
			p[key] = o
		}
	}
	return apply
}

// Store is a new one that holds what there is.
func (p Present) Store() *mesh.Store {
	var all []mesh.Object
	for _, o := range p {
		all = append(all, mesh.Object{Object: o.DeepCopyObject()})
	}
	s := mesh.NewStore(mesh.Options{})
	_ = s.Update(all, nil) // what it refuses, the other refused too
	return s
}
