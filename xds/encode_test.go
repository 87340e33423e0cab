package xds

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/weft-mesh/weft/envoy"
)

// TestTheDifferenceLeadsFromOneSetToTheOther compares with plain maps.
func TestTheDifferenceLeadsFromOneSetToTheOther(t *testing.T) {
	random := func(r *rand.Rand) *envoy.Set {
		var list []*envoy.Resource
		for i := range 12 {
			if r.IntN(2) == 0 {
				list = append(list, service(fmt.Sprint("c", i), fmt.Sprint(r.IntN(3)))...)
			}
		}
		return set("s", r.Uint64(), list...)
	}
	contents := func(s *envoy.Set, typ envoy.Type) map[string]string {
		out := make(map[string]string)
		for _, r := range s.Resources[typ] {
			out[r.Name] = r.Version
		}
		return out
	}
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 0))
		from, to := random(r), random(r)
		for _, typ := range []envoy.Type{envoy.Cluster, envoy.Endpoints} {
			updated, removed := difference(from, to, typ)
			got := contents(from, typ)
			for _, u := range updated {
				if got[u.Name] == u.Version {
					t.Fatalf("seed %d: %s did not change", seed, u.Name)
				}
				got[u.Name] = u.Version
			}
			for _, name := range removed {
				delete(got, name)
			}
			if want := contents(to, typ); !maps.Equal(got, want) {
				t.Fatalf("seed %d: got %v, want %v", seed, got, want)
			}
			if !slices.IsSortedFunc(updated, func(a, b *envoy.Resource) int { return map[bool]int{true: -1, false: 1}[a.Name < b.Name] }) {
				t.Fatalf("seed %d: not sorted", seed)
			}
		}
		// With companions, each changed cluster has its endpoints in the same step, once.
		c := new(change)
		c.compute(changeKey{from, to, envoy.Endpoints, true})
		clusters, _ := difference(from, to, envoy.Cluster)
		for _, cl := range clusters {
			n := 0
			for _, e := range c.updated {
				if e.Name == cl.Name {
					n++
				}
			}
			if n != 1 {
				t.Fatalf("seed %d: endpoints of %s are there %d times", seed, cl.Name, n)
			}
		}
	}
}

func TestAStepIsComputedOnceAndForgottenWhenNobodyTakesIt(t *testing.T) {
	c := newChanges()
	a, b := set("s", 1, service("a", "1")...), set("s", 2, service("a", "2")...)
	k := changeKey{from: a, to: b, typ: envoy.Cluster}
	first := c.get(k)
	if c.get(k) != first || first.parts.Len() == 0 {
		t.Error("computed twice, or without its parts")
	}
	for range keepGenerations {
		c.sweep()
	}
	if c.get(k) != first {
		t.Error("forgotten too early")
	}
	for range keepGenerations + 1 {
		c.sweep()
	}
	if len(c.entries) != 0 || len(c.runs) != 0 || c.kept != 0 {
		t.Errorf("%d steps, %d runs and %d bytes are kept for nobody", len(c.entries), len(c.runs), c.kept)
	}
}

func TestScopesShareTheBytesOfWhatTheyBothHave(t *testing.T) {
	var all []*envoy.Resource
	for i := range 500 {
		all = append(all, service(fmt.Sprintf("svc-%03d", i), "1")[0])
	}
	scope := func(without int) *change {
		s := &envoy.Set{}
		s.Resources[envoy.Cluster] = slices.Delete(slices.Clone(all), without, without+1)
		return &change{updated: s.Resources[envoy.Cluster]}
	}
	c := newChanges()
	a, b := scope(3), scope(333)
	c.encode(a)
	alone := c.kept
	c.encode(b)
	if more := c.kept - alone; more > alone/4 {
		t.Errorf("a second scope with nearly the same resources takes %d bytes more than the first, which takes %d", more, alone)
	}
	for _, e := range []*change{a, b} {
		var want []byte
		for _, r := range e.updated {
			want = append(want, r.Segment...)
		}
		if !bytes.Equal(e.parts.Materialize(), want) {
			t.Error("the parts are not the segments in a row")
		}
		c.drop(e)
	}
	if len(c.runs) != 0 || c.kept != 0 {
		t.Errorf("%d runs and %d bytes are kept for nobody", len(c.runs), c.kept)
	}
}
