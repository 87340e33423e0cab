package mesh

import (
	"slices"
	"testing"
)

// Istio, VirtualService.hosts: a short name ("reviews") is read in the namespace of the rule, not of the service; anything with a dot is taken as
// it stands, which is why the documentation recommends full names.
func TestShortNamesAreThoseOfTheRulesNamespace(t *testing.T) {
	for in, want := range map[string]string{
		"reviews":                       "reviews.foo.svc.cluster.local",
		"reviews.bar":                   "reviews.bar",
		"reviews.bar.svc.cluster.local": "reviews.bar.svc.cluster.local",
		"*":                             "*",
		"*.example.com":                 "*.example.com",
		"10.0.0.1":                      "10.0.0.1",
		"fd00::1":                       "fd00::1",
		"":                              "",
	} {
		if got := ResolveHost(in, "foo", "cluster.local"); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

// Istio, VirtualService.gateways: a gateway of another namespace is written namespace/name; without a namespace it is the rule's own;
// "mesh" is reserved for all sidecars.
func TestGatewayNamesCarryTheirNamespace(t *testing.T) {
	for in, want := range map[string]string{
		"mesh":                  "mesh",
		"gw":                    "foo/gw",
		"./gw":                  "foo/gw",
		"istio-system/external": "istio-system/external",
		"public-gateway.istio-system.svc.cluster.local": "istio-system/public-gateway",
		"gw.bar": "bar/gw",
	} {
		if got := resolveGateway(in, "foo"); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestWildcardsStandForOneLabelOrMore(t *testing.T) {
	for _, c := range []struct {
		pattern, host string
		want          bool
	}{
		{"*", "a.b", true},
		{"*.example.com", "a.example.com", true},
		{"*.example.com", "a.b.example.com", true},
		{"*.example.com", "example.com", false},
		{"*.example.com", "badexample.com", false},
		{"a.example.com", "a.example.com", true},
		{"a.example.com", "b.example.com", false},
		{"*.example.com", "*.example.com", true},
		{"*.com", "*.example.com", true},
		{"*.example.com", "*.com", false},
	} {
		if got := HostMatches(c.pattern, c.host); got != c.want {
			t.Errorf("%s covers %s: %v", c.pattern, c.host, got)
		}
	}
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"*.com", "*.example.com", true}, {"*.example.com", "*.com", true}, {"*", "a", true}, {"a", "b", false},
		{"*.example.com", "a.example.com", true}, {"*.a.com", "*.b.com", false},
	} {
		if HostsOverlap(c.a, c.b) != c.want || HostsOverlap(c.b, c.a) != c.want {
			t.Errorf("%s and %s overlap: want %v", c.a, c.b, c.want)
		}
	}
}

func TestTheMostSpecificHostComesFirst(t *testing.T) {
	hosts := []string{"*", "*.com", "b.com", "*.example.com", "a.example.com"}
	slices.SortFunc(hosts, CompareHosts)
	if want := []string{"a.example.com", "b.com", "*.example.com", "*.com", "*"}; !slices.Equal(hosts, want) {
		t.Errorf("got %v, want %v", hosts, want)
	}
}
