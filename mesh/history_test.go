package mesh_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/mesh/meshtest"
)

// However the mesh came to be what it is, with snapshots in between or without, of everything or of endpoints alone: it answers
// every question like one that was made of the same objects at once. And what a snapshot once answered, it answers for ever.
func TestHistoryLeavesNoTrace(t *testing.T) {
	for seed := range meshtest.Seeds(t, 20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			events := meshtest.History(t, seed, 60, nil)
			if replay(events) == "" {
				return
			}
			events = meshtest.Shortest(events, func(e []meshtest.Event) bool { return replay(e) != "" })
			for i, e := range events {
				t.Logf("%d: %s", i, e)
			}
			t.Fatal(replay(events))
		})
	}
}

// replay lets a history happen and says what is wrong at its end, or before.
func replay(events []meshtest.Event) string {
	store, present := mesh.NewStore(mesh.Options{}), meshtest.Present{}
	var old *mesh.Snapshot
	var oldText string
	for i, e := range events {
		_ = store.Update(present.Take(e), e.Remove) // what is refused is part of the history
		chance := e.Rand()
		switch chance.IntN(3) {
		case 0:
			store.Snapshot()
		case 1:
			store.BuildEndpoints()
		}
		if i < len(events)-1 && chance.IntN(5) > 0 {
			continue
		}
		if got, want := everything(store.Snapshot()), everything(present.Store().Snapshot()); got != want {
			return "not what its objects say (-want +got):\n" + cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n"))
		}
		if old != nil {
			if again := everything(old); again != oldText {
				return "an old snapshot changed (-then +now):\n" + cmp.Diff(strings.Split(oldText, "\n"), strings.Split(again, "\n"))
			}
		}
		if chance.IntN(2) == 0 {
			old = store.BuildEndpoints()
			oldText = everything(old)
		}
	}
	return ""
}

// everything is what a snapshot answers to every question that it can be asked.
func everything(s *mesh.Snapshot) string {
	var b strings.Builder
	fmt.Fprintln(&b, s.Mesh())
	for _, p := range s.Problems() {
		if p.Ref.Kind != "ConfigMap" { // of one that was refused, which is history
			fmt.Fprintln(&b, p)
		}
	}
	for n := range s.Namespaces() {
		fmt.Fprintln(&b, n.Ref, n.Labels)
	}
	for _, client := range []string{"default", "other", "istio-system", "elsewhere"} {
		for svc := range s.Services(client) {
			fmt.Fprintln(&b, client, "sees", svc.Ref, svc.Created.Unix(), svc.Host, svc.Addresses, svc.Ports, svc.Resolution, svc.ExternalName, svc.Selector, svc.External)
			if found := s.Service(client, svc.Host); found != svc {
				fmt.Fprintln(&b, "but finds", found.Ref)
			}
			if alias := s.Alias(client, svc); alias != nil {
				fmt.Fprintln(&b, "which means", alias.Ref)
			}
			if rule := s.DestinationRule(client, svc); rule != nil {
				fmt.Fprintln(&b, "by the rule", rule.Ref, rule.Merged, rule.Spec)
			}
			for _, p := range svc.Ports {
				for _, e := range s.Endpoints(svc, p) {
					fmt.Fprintln(&b, p.Number, "at", e.Address, e.Port, e.Ready, e.Hostname, e.Labels, e.Locality, e.Weight, e.MeshTLS())
					if e.Workload != nil && e.Workload.Kind == "Pod" && e.Workload != s.Workload(e.Workload.Namespace, e.Workload.Name) {
						fmt.Fprintln(&b, "of a pod that is not there so")
					}
				}
			}
		}
		for _, gateway := range []string{"mesh", "istio-system/edge"} {
			for _, vs := range s.VirtualServices(client, gateway) {
				fmt.Fprintln(&b, client, "at", gateway, "obeys", vs.Ref, vs.Merged, vs.Spec)
			}
			for _, host := range []string{"reviews.default.svc.cluster.local", "shop.example.com", "late.example.com", "none"} {
				for _, vs := range s.VirtualServicesFor(client, gateway, host) {
					fmt.Fprintln(&b, "for", host, vs.Ref)
				}
			}
		}
	}
	for w := range s.Workloads() {
		fmt.Fprintln(&b, w.Ref, w.UID, w.Labels, w.Annotations, w.Addresses, w.ServiceAccount, w.Node, w.Locality, w.Injected, w.Terminating, w.ContainerPorts, w.Owner, w.OwnerKind)
		for _, t := range s.Targets(w) {
			fmt.Fprintln(&b, "serves", t.Port, t.Protocol)
			for i, svc := range t.Services {
				fmt.Fprintln(&b, "for", svc.Ref, svc.Created.Unix(), t.ServicePorts[i])
			}
		}
		for _, g := range s.Gateways(w) {
			fmt.Fprintln(&b, "opens", g.Ref, g.Spec)
		}
		for _, port := range append(s.MTLSPorts(w), 0, 9080) {
			mode, refs := s.ServerMTLS(w, port)
			fmt.Fprintln(&b, "takes", port, mode, refs)
		}
	}
	return b.String()
}
