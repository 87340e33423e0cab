package xds

import (
	"slices"
	"testing"
	"time"

	"github.com/weft-mesh/weft/envoy"
)

func TestAThrottledServerTellsEverybodyAlsoWhenSomeDoNotRead(t *testing.T) {
	f := newFixture(t, func(c *Config) {
		if err := c.FromEnvironment(func(string) string { return "1" }); err != nil {
			t.Fatal(err)
		}
	}, set("s", 1, service("a", "1")...))
	// The only place is taken, and stays so.
	f.pushes <- struct{}{}
	c := f.connect(f.token(time.Hour))
	c.subscribe(envoy.Cluster)
	c.expect(envoy.Cluster, "a@1")
	f.push(set("s", 2, slices.Concat(service("a", "1"), service("b", "1"))...))
	c.expect(envoy.Cluster, "b@1")
	c.expect(envoy.Endpoints, "b@1")
	for _, bad := range []string{"many", "-1"} {
		if err := new(Config).FromEnvironment(func(string) string { return bad }); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
