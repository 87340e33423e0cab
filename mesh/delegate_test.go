package mesh

import (
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"
)

func prefix(p string) *networking.StringMatch {
	return &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: p}}
}

func exact(e string) *networking.StringMatch {
	return &networking.StringMatch{MatchType: &networking.StringMatch_Exact{Exact: e}}
}

func to(host string) []*networking.HTTPRouteDestination {
	return []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: host}}}
}

// Istio, HTTPRoute.delegate: only when route and redirect are empty; the delegate's rules are merged with the root's; the delegate's match must be a subset of the
// root's, otherwise there is a conflict and the route has no effect.
func TestDelegatesFillInTheRoutesOfTheirRoot(t *testing.T) {
	s := NewStore(Options{})
	root := virtualService("edge", "root", 1, &networking.VirtualService{Hosts: []string{"x.com"}, Gateways: []string{"gw"}, Http: []*networking.HTTPRoute{
		{Name: "team", Match: []*networking.HTTPMatchRequest{{Uri: prefix("/team")}}, Delegate: &networking.Delegate{Name: "sub", Namespace: "team"}, Timeout: durationpb.New(5)},
		{Match: []*networking.HTTPMatchRequest{{Uri: prefix("/gone")}}, Delegate: &networking.Delegate{Name: "nowhere"}},
		{Route: to("fallback")},
	}})
	sub := virtualService("team", "sub", 2, &networking.VirtualService{Http: []*networking.HTTPRoute{
		{Name: "a", Match: []*networking.HTTPMatchRequest{{Uri: exact("/team/a"), Headers: map[string]*networking.StringMatch{"x": exact("1")}}}, Route: to("a")},
		{Match: []*networking.HTTPMatchRequest{{Uri: prefix("/other")}}, Route: to("never")},
		{Route: to("b"), Timeout: durationpb.New(7)},
	}})
	s.Apply(objects(root, sub)...)
	n := s.Snapshot()
	list := n.VirtualServices("edge", "edge/gw")
	if len(list) != 1 || len(list[0].Spec.Http) != 3 {
		t.Fatalf("got %v", list)
	}
	a, b, c := list[0].Spec.Http[0], list[0].Spec.Http[1], list[0].Spec.Http[2]
	if a.Name != "team-a" || a.Match[0].Uri.GetExact() != "/team/a" || a.Match[0].Headers["x"] == nil || a.Route[0].Destination.Host != "a.team.svc.cluster.local" || a.Timeout.Nanos != 5 {
		t.Errorf("first: %v", a)
	}
	if b.Match[0].Uri.GetPrefix() != "/team" || b.Timeout.Nanos != 7 {
		t.Errorf("second: %v", b)
	}
	if c.Route[0].Destination.Host != "fallback.edge.svc.cluster.local" {
		t.Errorf("third: %v", c)
	}
	if len(list[0].Merged) != 1 || list[0].Merged[0].Name != "sub" {
		t.Errorf("the delegate is not among the causes: %v", list[0].Merged)
	}
	if got := n.VirtualServices("team", "mesh"); got != nil {
		t.Errorf("a delegate applies by itself: %v", got)
	}
	s.Apply(objects(virtualService("z", "unrelated", 3, &networking.VirtualService{Hosts: []string{"z"}}))...)
	if again := s.Snapshot().VirtualServices("edge", "edge/gw"); again[0] != list[0] {
		t.Error("the merged object was made anew although none of its parts changed")
	}
	sub.Spec.Http[2].Route = to("c")
	s.Apply(objects(virtualService("team", "sub", 2, &networking.VirtualService{Http: sub.Spec.Http}))...)
	if again := s.Snapshot().VirtualServices("edge", "edge/gw"); again[0] == list[0] || again[0].Spec.Http[1].Route[0].Destination.Host != "c.team.svc.cluster.local" {
		t.Error("the delegate's change did not arrive")
	}
}

func TestOnlyNarrowerMatchesMayBeDelegated(t *testing.T) {
	regex := &networking.StringMatch{MatchType: &networking.StringMatch_Regex{Regex: "/a.*"}}
	for _, c := range []struct {
		root, leaf *networking.StringMatch
		conflict   bool
	}{
		{nil, exact("/x"), false},
		{prefix("/a"), nil, false},
		{prefix("/a"), prefix("/a/b"), false},
		{prefix("/a/b"), prefix("/a"), true},
		{prefix("/a"), exact("/a/b"), false},
		{prefix("/a"), exact("/b"), true},
		{exact("/a"), exact("/a"), false},
		{exact("/a"), exact("/b"), true},
		{exact("/a"), prefix("/a"), true},
		{regex, prefix("/a"), true},
		{prefix("/a"), regex, true},
	} {
		if got := stringConflict(c.root, c.leaf); got != c.conflict {
			t.Errorf("%v delegating to %v: conflict %v", c.root, c.leaf, got)
		}
	}
}
