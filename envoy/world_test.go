package envoy

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	istio "istio.io/client-go/pkg/clientset/versioned/scheme"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	kubernetes "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/mesh"
)

func TestSameMeshGivesSameBytesInAnyOrder(t *testing.T) {
	documents := []string{contents(t, "testdata/bookinfo.yaml")}
	for _, f := range []string{"weights", "headers", "match", "tcp", "headless", "undeclared-protocol", "locality-failover", "hosts-outside"} {
		text := contents(t, "testdata/"+f+"/in.yaml")
		// One VirtualService for each host: of two equally old ones the name decides, which is not what is tested here.
		text = strings.ReplaceAll(text, "metadata: {name: reviews, namespace: default}", "metadata: {name: "+f+", namespace: default}")
		documents = append(documents, text)
	}
	all := strings.Split(strings.Join(documents, "\n---\n"), "\n---\n")
	var want []*Set
	for i := range 5 {
		world := NewWorld(snapshotOf(t, strings.Join(all, "\n---\n")), nil)
		got := world.Sets(proxyOf(t, world, "# proxy: sleep.default\n"))
		if i == 0 {
			want = got
		}
		for j := range want {
			for kind := range NumTypes {
				if !slices.EqualFunc(want[j].Resources[kind], got[j].Resources[kind], func(a, b *Resource) bool {
					return a.Name == b.Name && a.Version == b.Version && bytes.Equal(a.Segment, b.Segment)
				}) {
					t.Errorf("%s: %s differ with the order of the objects", want[j].Scope, kind.TypeURL())
				}
			}
		}
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	}
}

// A meshInMotion is a store with Bookinfo in it, and the Worlds that follow from its changes.
type meshInMotion struct {
	t     *testing.T
	store *mesh.Store
	world *World
}

func inMotion(t *testing.T) *meshInMotion {
	m := &meshInMotion{t: t, store: inMotionStore(t)}
	m.next()
	return m
}

func (m *meshInMotion) apply(documents string) {
	m.t.Helper()
	applyTo(m.t, m.store, documents)
	m.next()
}

func inMotionStore(t testing.TB) *mesh.Store {
	s := mesh.NewStore(mesh.Options{})
	applyTo(t, s, contents(t, "testdata/bookinfo.yaml"))
	return s
}

func applyTo(t testing.TB, store *mesh.Store, documents string) {
	t.Helper()
	scheme := runtime.NewScheme()
	_ = kubernetes.AddToScheme(scheme)
	_ = istio.AddToScheme(scheme)
	decoder := serializer.NewCodecFactory(scheme).UniversalDeserializer()
	for _, doc := range strings.Split(documents, "\n---\n") {
		json, err := yaml.YAMLToJSON([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		o, _, err := decoder.Decode(json, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		store.Apply(mesh.Object{Object: o})
	}
}

func (m *meshInMotion) next() { m.world = NewWorld(m.store.Snapshot(), m.world) }

func (m *meshInMotion) outbound(namespace string) *Set {
	return m.world.outboundSets(Proxy{Kind: Sidecar, Namespace: namespace})[0]
}

// changed names the resources that are not the same objects.
func changed(before, after *Set) []string {
	var names []string
	for kind := range NumTypes {
		for _, r := range after.Resources[kind] {
			if !slices.Contains(before.Resources[kind], r) {
				names = append(names, fmt.Sprintf("%T %s", unpackFor(r), r.Name))
			}
		}
	}
	return names
}

func unpackFor(r *Resource) any {
	return map[Type]any{Cluster: clusterKind{}, Endpoints: endpointsKind{}, Listener: listenerKind{}, Route: routeKind{}, VirtualHost: hostKind{}}[r.Type]
}

type (
	clusterKind   struct{}
	endpointsKind struct{}
	listenerKind  struct{}
	routeKind     struct{}
	hostKind      struct{}
)

const (
	oneEndpoint = `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: reviews-1, namespace: default, labels: {kubernetes.io/service-name: reviews}}
addressType: IPv4
ports: [{name: http, port: 9080, protocol: TCP}]
endpoints:
- addresses: [10.244.0.21]
  conditions: {ready: true}
  targetRef: {kind: Pod, name: reviews-v1, namespace: default}
`
	timeoutForRatings = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings, namespace: default}
spec:
  hosts: [ratings]
  http: [{timeout: 1s, route: [{destination: {host: ratings}}]}]
`
)

func TestChangeTouchesOnlyWhatDependsOnIt(t *testing.T) {
	for _, c := range []struct {
		name, yaml string
		want       []string
	}{
		{"endpoint", oneEndpoint, []string{"envoy.endpointsKind outbound|9080||reviews.default.svc.cluster.local"}},
		{"virtual service", timeoutForRatings, []string{"envoy.hostKind 9080/ratings.default.svc.cluster.local"}},
		{"the same again", contents(t, "testdata/bookinfo.yaml"), nil},
		{"unrelated namespace", "apiVersion: v1\nkind: Namespace\nmetadata: {name: new}", nil},
		{"permission", `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: all, namespace: istio-system}
spec: {mtls: {mode: STRICT}}`, nil},
		{"destination rule", `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ratings, namespace: default}
spec: {host: ratings, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}}`,
			[]string{"envoy.clusterKind outbound|9080||ratings.default.svc.cluster.local"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := inMotion(t)
			before := m.outbound("default")
			m.apply(c.yaml)
			after := m.outbound("default")
			got := changed(before, after)
			// A rule becomes a cause of its host's endpoints too; their bytes stay.
			got = slices.DeleteFunc(got, func(n string) bool {
				return c.name == "destination rule" && strings.HasPrefix(n, "envoy.endpointsKind")
			})
			if !slices.Equal(got, c.want) {
				t.Errorf("changed %q, want %q", got, c.want)
			}
			if c.want == nil && before != after {
				t.Errorf("a new set with nothing new in it")
			}
			if c.want != nil && after.Version <= before.Version {
				t.Errorf("version went from %d to %d", before.Version, after.Version)
			}
		})
	}
}

func TestHostsThatAreNoServicesFollowChangesToo(t *testing.T) {
	m := inMotion(t)
	stranger := func(timeout string) string {
		return `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: default}
spec:
  hosts: [shop.example.com]
  http: [{timeout: ` + timeout + `, route: [{destination: {host: reviews}}]}]`
	}
	m.apply(stranger("1s"))
	before := m.outbound("default")
	m.apply(oneEndpoint)
	after := m.outbound("default")
	if got := changed(before, after); len(got) != 1 {
		t.Errorf("an endpoint: changed %q", got)
	}
	m.apply(stranger("2s"))
	if got := changed(after, m.outbound("default")); !slices.Equal(got, []string{"envoy.hostKind 80/shop.example.com"}) {
		t.Errorf("its own routes: changed %q", got)
	}
	before = m.outbound("default")
	m.apply(`
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec: {host: reviews, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}}`)
	if got := changed(before, m.outbound("default")); !slices.Contains(got, "envoy.hostKind 80/shop.example.com") {
		t.Errorf("a rule of its destination: changed %q", got)
	}
}

func TestClientsOfAllNamespacesShareHosts(t *testing.T) {
	m := inMotion(t)
	a, b, home := m.outbound("a"), m.outbound("b"), m.outbound("default")
	if got := changed(a, b); got != nil {
		t.Errorf("not shared between two foreign namespaces: %q", got)
	}
	if got := changed(a, home); !slices.Equal(got, []string{
		"envoy.hostKind 9080/ratings.default.svc.cluster.local", "envoy.hostKind 9080/reviews.default.svc.cluster.local",
	}) {
		t.Errorf("shared with the host's own namespace must be all but short names; not shared: %q", got)
	}
}

func TestConfigurationOfHostGoesWithIt(t *testing.T) {
	m := inMotion(t)
	before := m.outbound("default")
	m.apply(timeoutForRatings)
	m.outbound("default")
	m.store.Delete(mesh.Key{Kind: "VirtualService", Namespace: "default", Name: "ratings"})
	m.next()
	after := m.outbound("default")
	if got := changed(before, after); got != nil {
		t.Errorf("not what it was before the VirtualService: %q", got)
	}
	m.store.Delete(mesh.Key{Kind: "Service", Namespace: "default", Name: "ratings"})
	m.next()
	for _, r := range m.outbound("default").Resources[Cluster] {
		if strings.Contains(r.Name, "ratings") {
			t.Errorf("%s outlives its Service", r.Name)
		}
	}
}

func TestManyStreamsAskAtOnce(t *testing.T) {
	m := inMotion(t)
	var wg sync.WaitGroup
	sets := make([]*Set, 32)
	for i := range sets {
		wg.Go(func() { sets[i] = m.outbound("default") })
	}
	next := NewWorld(m.store.Snapshot(), m.world) // while they do
	wg.Wait()
	for _, s := range sets {
		if s == nil || s != sets[0] {
			t.Fatal("streams of one scope have different sets")
		}
	}
	if got := next.outboundSets(Proxy{Namespace: "default"})[0]; changed(sets[0], got) != nil {
		t.Error("unchanged mesh, changed resources")
	}
	// Streams that have not heard of the next World ask the old one beside it.
	for i := range 64 {
		for _, w := range []*World{m.world, next} {
			wg.Go(func() { w.Sets(Proxy{Kind: Sidecar, Namespace: fmt.Sprint("namespace-", i)}) })
		}
	}
	wg.Wait()
}

func TestAClientNeverGetsTheRoutesOfOneWithOtherLabels(t *testing.T) {
	m := inMotion(t)
	rule := func(name, host, app string, created int) string {
		return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %s, namespace: default, creationTimestamp: "2026-01-0%dT00:00:00Z"}
spec:
  hosts: [%s]
  http: [{match: [{sourceLabels: {app: %s}}], timeout: 1s, route: [{destination: {host: %s}}]}, {route: [{destination: {host: %s}}]}]`, name, created, host, app, host, host)
	}
	timeouts := func(pod string) int {
		p := Proxy{Kind: Sidecar, Namespace: "default", Pod: pod, Workload: m.world.snap.Workload("default", pod)}
		n := 0
		for _, r := range m.world.outboundSets(p)[0].Resources[VirtualHost] {
			n += strings.Count(yamlOf(t, unpack(t, r)), "timeout: 1s")
		}
		return n
	}
	m.apply(rule("one", "reviews", "sleep", 2))
	m.apply(rule("another", "ratings", "nobody", 3))
	if got := timeouts("sleep"); got != 1 {
		t.Fatalf("the client that is meant has %d routes of its own, want 1", got)
	}
	// Now the first of all sourceLabels are those of another client.
	m.store.Delete(mesh.Key{Kind: "VirtualService", Namespace: "default", Name: "another"})
	m.apply(rule("another", "ratings", "reviews", 1))
	if got := timeouts("reviews-v1"); got != 1 {
		t.Errorf("reviews-v1 has %d routes with a timeout, want that of ratings alone", got)
	}
	if got := timeouts("sleep"); got != 1 {
		t.Errorf("sleep has %d routes with a timeout, want that of reviews alone", got)
	}
}
