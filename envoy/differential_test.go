package envoy

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/mesh/meshtest"
)

// What a proxy is told must not depend on the way that led to the present mesh: after any history of changes, the World that was derived
// step by step says the same, byte for byte, as one that is made of the same objects from nothing.
func TestHistoryLeavesNoTrace(t *testing.T) {
	var pool []runtime.Object
	ins, err := filepath.Glob("testdata/*/in.yaml")
	if err != nil || len(ins) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	for _, in := range ins {
		pool = append(pool, meshtest.Objects(t, contents(t, in))...)
	}
	bookinfo := meshtest.Event{Apply: meshtest.Objects(t, contents(t, "testdata/bookinfo.yaml"))}
	for seed := range meshtest.Seeds(t, 20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			events := append([]meshtest.Event{bookinfo}, meshtest.History(t, seed, 60, pool)...)
			if replay(t, events) == "" {
				return
			}
			events = meshtest.Shortest(events, func(e []meshtest.Event) bool { return replay(t, e) != "" })
			for i, e := range events {
				t.Logf("%d: %s", i, e)
			}
			t.Fatal(replay(t, events))
		})
	}
}

// replay lets a history happen and says what is wrong at its end, or before. After each event some of the proxies ask for their
// configuration.
func replay(t *testing.T, events []meshtest.Event) string {
	t.Helper()
	store, present := mesh.NewStore(mesh.Options{}), meshtest.Present{}
	var world *World
	said := map[string]string{}
	for i, e := range events {
		_ = store.Update(present.Take(e), e.Remove) // what is refused is part of the history
		world = NewWorld(store.Snapshot(), world)
		chance := e.Rand()
		for _, p := range proxiesOf(world) {
			if chance.IntN(3) == 0 {
				world.Sets(p)
			}
		}
		if i == len(events)-1 || chance.IntN(4) == 0 {
			if wrong := compare(t, store.Snapshot(), world, present, said); wrong != "" {
				return wrong
			}
		}
	}
	return ""
}

// compare says how a World differs from a new one of the same objects.
func compare(t *testing.T, snap *mesh.Snapshot, world *World, present meshtest.Present, said map[string]string) string {
	t.Helper()
	fresh, remade := NewWorld(present.Store().Snapshot(), nil), NewWorld(snap, nil)
	for _, p := range proxiesOf(world) {
		got, want := world.Sets(p), fresh.Sets(asIn(fresh, p))
		for _, s := range got {
			if wrong := repeated(s, said); wrong != "" {
				return wrong
			}
		}
		if diff := difference(t, want, got); diff != "" {
			where := "the World that was derived from its predecessors"
			if difference(t, want, remade.Sets(asIn(remade, p))) != "" {
				where = "the Snapshot (package mesh)"
			}
			return fmt.Sprintf("%s %s/%s: %s is not what its objects say:\n%s", p.Kind, p.Namespace, p.Pod, where, diff)
		}
	}
	if got, want := world.Problems(), fresh.Problems(); !slices.Equal(got, want) {
		return fmt.Sprintf("problems are\n%v\nnot\n%v", got, want)
	}
	return ""
}

// asIn is the proxy as another World knows it.
func asIn(w *World, p Proxy) Proxy {
	p.Workload = w.snap.Workload(p.Namespace, p.Pod)
	return p
}

// proxiesOf are all pods, and one that the mesh has not heard of.
func proxiesOf(w *World) []Proxy {
	out := []Proxy{
		{Kind: Sidecar, Namespace: "other", Pod: "unheard"},
		{Kind: Sidecar, Namespace: "other", Pod: "unheard", Inline: true},
		{Kind: Sidecar, Namespace: "other", Pod: "unheard", ServiceAccount: "all", Demand: (&Demand{Workload: "other/all"}).With(VirtualHost, "80/*", "9080/*", "8080/*")},
	}
	for workload := range w.snap.Workloads() {
		p := Proxy{Kind: Sidecar, Namespace: workload.Namespace, Pod: workload.Name, ServiceAccount: workload.ServiceAccount, Workload: workload}
		if workload.Labels["istio"] == "ingressgateway" {
			p.Kind = Router
		}
		out = append(out, p)
		if p.Kind == Sidecar {
			p.Demand = demandOf(p)
			out = append(out, p)
		}
	}
	return out
}

// demandOf is what a workload of the goldens might ask for; a larger part of it at each turn, as far as the name of its pod tells.
func demandOf(p Proxy) *Demand {
	d := &Demand{Workload: p.Namespace + "/" + p.ServiceAccount}
	chance := rand.New(rand.NewPCG(xxhash.Sum64String(p.Pod), 1))
	for _, port := range []string{"80", "443", "8080", "9080", "9187"} {
		for _, host := range []string{
			"reviews", "reviews.default", "ratings.default.svc.cluster.local:9080", "10.96.0.10", "[fd00:96::24]", "httpbin.org", "www.example.com", "a.example.com",
			"shop.example.com", "db-0.db", "db-1.db.default.svc.cluster.local", "nobody", "old.default", "old.example.com", "*",
		} {
			if chance.IntN(3) == 0 && (host != "*" || chance.IntN(10) == 0) {
				d = d.With(VirtualHost, port+"/"+host)
			}
		}
		for _, c := range []string{"||reviews.default.svc.cluster.local", "|v1|reviews.default.svc.cluster.local", "||nobody.default.svc.cluster.local", "||db.default.svc.cluster.local"} {
			if chance.IntN(3) == 0 {
				d = d.With(Cluster, "outbound|"+port+c)
			}
		}
	}
	return d
}

// repeated says when a scope has other contents under a version that it had before.
func repeated(s *Set, said map[string]string) string {
	var b strings.Builder
	for _, r := range all([]*Set{s}) {
		fmt.Fprintln(&b, r.Type, r.Name, r.Version)
	}
	id := fmt.Sprint(s.Scope, " ", s.Version)
	if old, ok := said[id]; ok && old != b.String() {
		return fmt.Sprintf("%s means two things:\n%s\nand\n%s", id, old, b.String())
	}
	said[id] = b.String()
	return ""
}

// difference names what is not the same in two proxies' configurations.
func difference(t *testing.T, want, got []*Set) string {
	var b strings.Builder
	of := func(sets []*Set) map[content]*Resource {
		out := map[content]*Resource{}
		for _, r := range all(sets) {
			out[content{Type: r.Type, name: r.Name}] = r
		}
		return out
	}
	w, g := of(want), of(got)
	for id, r := range w {
		switch other := g[id]; {
		case other == nil:
			fmt.Fprintf(&b, "missing %s %s\n", id.Type.TypeURL(), id.name)
		case !bytes.Equal(r.Segment, other.Segment):
			fmt.Fprintf(&b, "%s %s is\n%s\nnot\n%s\n", id.Type.TypeURL(), id.name, yamlOf(t, unpack(t, other)), yamlOf(t, unpack(t, r)))
		case !slices.Equal(r.Causes, other.Causes):
			fmt.Fprintf(&b, "%s %s: causes are %v, not %v\n", id.Type.TypeURL(), id.name, other.Causes, r.Causes)
		}
	}
	for id := range g {
		if w[id] == nil {
			fmt.Fprintf(&b, "left over %s %s\n", id.Type.TypeURL(), id.name)
		}
	}
	return b.String()
}
