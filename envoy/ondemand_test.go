package envoy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

// has lists what the Set of a Demand holds: virtual hosts with their domains, and clusters.
func has(t *testing.T, w *World, p Proxy) []string {
	t.Helper()
	var out []string
	sets := w.outboundSets(p)
	for _, r := range sets[1].Resources[VirtualHost] {
		out = append(out, r.Name+" "+strings.Join(unpack(t, r).(*route.VirtualHost).Domains, ","))
	}
	for _, r := range sets[1].Resources[Cluster] {
		out = append(out, r.Name)
	}
	for _, r := range sets[1].Resources[Endpoints] {
		if !slices.Contains(out, r.Name) {
			t.Errorf("endpoints of %s without their cluster", r.Name)
		}
	}
	return out
}

func asker(names ...string) Proxy {
	d := &Demand{Workload: "default/sleep"}
	for _, n := range names {
		kind := VirtualHost
		if strings.Contains(n, "|") {
			kind = Cluster
		}
		d = d.With(kind, n)
	}
	return Proxy{Kind: Sidecar, Namespace: "default", Pod: "sleep", ServiceAccount: "sleep", Demand: d}
}

const reviewsHost = "9080/reviews.default.svc.cluster.local reviews.default.svc.cluster.local,reviews.default.svc,reviews.default,reviews,10.96.0.10"

func entry(name, host string) string {
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %s, namespace: default}
spec: {hosts: [%q], ports: [{number: 9080, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 10.1.1.1}]}`, name, host)
}

func TestADemandBringsWhatItNamesAndNothingElse(t *testing.T) {
	m := inMotion(t)
	for _, c := range []struct {
		asked, want []string
	}{
		{nil, nil},
		{[]string{"9080/reviews"}, []string{reviewsHost, "outbound|9080||reviews.default.svc.cluster.local"}},
		{[]string{"9080/reviews", "9080/reviews.default:9080", "9080/10.96.0.10"}, []string{reviewsHost, "outbound|9080||reviews.default.svc.cluster.local"}},
		{[]string{"9080/nobody.example", "9080/nobody.example:9080"}, []string{"9080/nobody.example nobody.example"}},
		{[]string{"9080/[fd00::7]:9080"}, []string{"9080/[fd00::7] [fd00::7]"}},
		{[]string{"81/reviews", "9080/*.example", "9080/", "reviews", "x/reviews", "9080/a/b", "9080/a b"}, nil},
		{[]string{"outbound|9080||reviews.default.svc.cluster.local"}, []string{"outbound|9080||reviews.default.svc.cluster.local"}},
		{[]string{"outbound|9080|v7|reviews.default.svc.cluster.local"}, []string{"outbound|9080|v7|reviews.default.svc.cluster.local"}},
		{[]string{"outbound|x||reviews.default.svc.cluster.local", "inbound|80||", "outbound|80||a\xff"}, nil},
		{[]string{"9080/*"}, []string{
			"9080/* *",
			"9080/ratings.default.svc.cluster.local ratings.default.svc.cluster.local,ratings.default.svc,ratings.default,ratings,10.96.0.11",
			reviewsHost,
			"outbound|9080||ratings.default.svc.cluster.local", "outbound|9080||reviews.default.svc.cluster.local",
		}},
	} {
		if got := has(t, m.world, asker(c.asked...)); !slices.Equal(got, c.want) {
			t.Errorf("asked %q, got\n%s\nwant\n%s", c.asked, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
	}
}

func TestReplicasShareOneSetAndChangesOfOthersDoNotTouchIt(t *testing.T) {
	m := inMotion(t)
	one, other := asker("9080/reviews"), asker("9080/reviews")
	other.Pod = "sleep-2"
	before := m.world.outboundSets(one)
	if got := m.world.outboundSets(other); !slices.Equal(got, before) {
		t.Errorf("two replicas with one Demand have two Sets")
	}
	m.apply(timeoutForRatings)
	if got := m.world.outboundSets(one); !slices.Equal(got, before) {
		t.Errorf("a change of a host that it has not asked for: %v", changed(before[1], got[1]))
	}
	m.apply(oneEndpoint)
	after := m.world.outboundSets(one)
	if got := changed(before[1], after[1]); !slices.Equal(got, []string{"envoy.endpointsKind outbound|9080||reviews.default.svc.cluster.local"}) {
		t.Errorf("an endpoint of its host: changed %q", got)
	}
	if before[0] != after[0] {
		t.Errorf("an endpoint: changed %q of what all sidecars have", changed(before[0], after[0]))
	}
	one.Demand = one.Demand.With(VirtualHost, "9080/ratings")
	larger := m.world.outboundSets(one)
	if larger[0] != after[0] || larger[1].Version <= after[1].Version || larger[1].Scope != after[1].Scope {
		t.Errorf("a larger Demand: %s version %d follows %s version %d", larger[1].Scope, larger[1].Version, after[1].Scope, after[1].Version)
	}
	for _, r := range after[1].Resources[Cluster] {
		if !slices.Contains(larger[1].Resources[Cluster], r) {
			t.Errorf("%s is not the same object in the Set of a larger Demand", r.Name)
		}
	}
}

// A sidecar that has *.example would never ask for api.example.
func TestAWildcardIsGivenAwayOnlyWhileNobodyHasANameUnderIt(t *testing.T) {
	m := inMotion(t)
	m.apply(entry("wild", "*.example"))
	p := asker("9080/a.example", "9080/b.c.example")
	const clusterOfWild = "outbound|9080||*.example"
	if got, want := has(t, m.world, p), []string{"9080/*.example *.example", clusterOfWild}; !slices.Equal(got, want) {
		t.Errorf("alone: %q, want %q", got, want)
	}
	m.apply(entry("api", "api.example"))
	if got, want := has(t, m.world, p), []string{"9080/a.example a.example", "9080/b.c.example b.c.example", clusterOfWild}; !slices.Equal(got, want) {
		t.Errorf("with a name under it: %q, want %q", got, want)
	}
	m.apply(entry("deeper", "*.c.example"))
	want := []string{"9080/*.c.example *.c.example", "9080/a.example a.example", "outbound|9080||*.c.example", clusterOfWild}
	if got := has(t, m.world, p); !slices.Equal(got, want) {
		t.Errorf("with a longer wildcard under it: %q, want %q", got, want)
	}
	m.apply(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: everything, namespace: default}
spec: {hosts: ["*"], http: [{match: [{port: 9080}], route: [{destination: {host: reviews}}]}, {route: [{destination: {host: ratings, port: {number: 9080}}}]}]}`)
	if got := has(t, m.world, asker("80/nobody.example.org")); !slices.Equal(got, []string{"80/nobody.example.org nobody.example.org", "outbound|9080||ratings.default.svc.cluster.local"}) {
		t.Errorf("a VirtualService for everybody: %q", got)
	}
}

func TestResolveFindsWhatANameMeansAndSaysWhatItIs(t *testing.T) {
	m := inMotion(t)
	m.apply(entry("wild", "*.example"))
	for _, c := range []struct {
		name, want string
		meaning    Meaning
	}{
		{"9080/reviews", "9080/reviews.default.svc.cluster.local", Known},
		{"9080/ratings.default:1", "9080/ratings.default.svc.cluster.local", Known},
		{"9080/x.example", "9080/*.example", Known},
		{"9080/example", "9080/example", Stranger},
		{"9080/nobody:80", "9080/nobody", Stranger},
		{"79/nobody", "", Stranger}, // no such table, now
		{"9080/*", "", Nonsense},
		{"9080/[::1", "", Nonsense},
		{"9080/[::1%eth0]", "", Nonsense},
		{"9080/nobody:http", "", Nonsense},
		{"9080/" + strings.Repeat("a", 254), "", Nonsense},
	} {
		if got := m.world.Means(asker(), VirtualHost, c.name); got != c.meaning {
			t.Errorf("%s means %d, want %d", c.name, got, c.meaning)
		}
		if r := m.world.Resolve(asker(), VirtualHost, c.name); r != nil {
			t.Errorf("%s resolves to %s before it is in the Demand", c.name, r.Name)
		}
		got := ""
		if c.meaning != Nonsense {
			if r := m.world.Resolve(asker(c.name), VirtualHost, c.name); r != nil {
				got = r.Name
			}
		}
		if got != c.want {
			t.Errorf("%s resolves to %q, want %q", c.name, got, c.want)
		}
	}
	if r := m.world.Resolve(asker("9080/*"), VirtualHost, "9080/one.of.thousands"); r == nil || r.Name != "9080/*" {
		t.Errorf("a workload that has the whole table gets %v for a stranger", r)
	}
	for name, want := range map[string]Meaning{
		"outbound|9080||reviews.default.svc.cluster.local":   Known,
		"outbound|9080|v9|reviews.default.svc.cluster.local": Stranger,
		"outbound|9080||":       Nonsense,
		"BlackHoleCluster":      Nonsense,
		"outbound|0||a.example": Nonsense,
	} {
		if got := m.world.Means(asker(), Cluster, name); got != want {
			t.Errorf("%s means %d, want %d", name, got, want)
		}
	}
}

// Names come from apps. Whatever they are, the configuration must stay such that Envoy takes it, and nobody gets routes for names that he did not
// ask for.
func FuzzAnAskedNameNeverBecomesStructure(f *testing.F) {
	for _, name := range []string{
		"9080/reviews", "80/*", "9080/*.svc", "9080/a:80", "9080/[::1]:80", "9080/\xff", "9080/a\x00b", "9080/a,b", "9080//", "9080/~", "0/a", "+80/a", "9080/.", "9080/a.", "9080/[::]]",
		"outbound|9080||reviews.default.svc.cluster.local", "outbound|9080||\n",
	} {
		f.Add(name)
	}
	store := inMotionStore(f)
	w := NewWorld(store.Snapshot(), nil)
	known := map[string]bool{}
	for _, r := range w.outboundSets(Proxy{Kind: Sidecar, Namespace: "default"})[0].Resources[VirtualHost] {
		known[r.Name] = true
	}
	f.Fuzz(func(t *testing.T, name string) {
		for _, kind := range []Type{VirtualHost, Cluster} {
			p := asker()
			meaning := w.Means(p, kind, name)
			p.Demand = p.Demand.With(kind, name)
			set := w.outboundSets(p)[1]
			if meaning == Nonsense && name != "9080/*" && len(set.Resources[VirtualHost])+len(set.Resources[Cluster]) > 0 {
				t.Fatalf("%q is nonsense, and brings %d resources", name, len(set.Resources[kind]))
			}
			for _, r := range set.Resources[VirtualHost] {
				h := unpack(t, r).(*route.VirtualHost)
				if err := h.ValidateAll(); err != nil || h.Name != r.Name {
					t.Fatalf("%q brings %q: %v", name, r.Name, err)
				}
				if known[r.Name] {
					continue
				}
				_, authority, _ := strings.Cut(name, "/")
				if len(h.Domains) != 1 || strings.Contains(h.Domains[0], "*") || !strings.HasPrefix(authority, h.Domains[0]) || strings.Count(r.Name, "/") != 1 {
					t.Fatalf("%q brings %q for %q", name, r.Name, h.Domains)
				}
			}
			for _, r := range set.Resources[Cluster] {
				if err := unpack(t, r).(interface{ ValidateAll() error }).ValidateAll(); err != nil {
					t.Fatalf("%q brings %q: %v", name, r.Name, err)
				}
			}
			w.Resolve(p, kind, name)
		}
	})
}
