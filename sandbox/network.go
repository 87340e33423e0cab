package sandbox

import (
	"context"
	"log/slog"
	"net/netip"
	"sort"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-mesh/weft/sandbox/dns"
	"github.com/weft-mesh/weft/sandbox/store"
	"github.com/weft-mesh/weft/sandbox/vip"
)

// clusterDomain is the DNS suffix of every sandbox.
const clusterDomain = "cluster.local"

// networkQuiet is how long changes gather before DNS and service addresses follow.
const networkQuiet = 3 * time.Millisecond

// network keeps cluster DNS and the service addresses equal to the store.
type network struct {
	store *store.Store
	dns   *dns.Server
	plan  addresses
	log   *slog.Logger

	mu      sync.Mutex
	settled *sync.Cond
	asked   uint64 // number of the last round somebody waits for
	done    uint64 // number of the last round that is in force
	kick    chan struct{}
	stopped bool
}

func newNetwork(s *store.Store, d *dns.Server, plan addresses, log *slog.Logger) *network {
	n := &network{store: s, dns: d, plan: plan, log: log, kick: make(chan struct{}, 1)}
	n.settled = sync.NewCond(&n.mu)
	return n
}

// Run follows the store until ctx ends.
func (n *network) Run(ctx context.Context) error {
	w := n.store.Watch(func(e store.Event) bool {
		switch e.Key.Resource {
		case "services", "endpointslices.discovery.k8s.io", "namespaces":
			return true
		case "pods":
			// Only a pod's addresses are of interest.
			p := e.Object.(*corev1.Pod)
			old, _ := e.Old.(*corev1.Pod)
			return old == nil || e.Type == store.Deleted || len(p.Status.PodIPs) != len(old.Status.PodIPs)
		}
		return false
	})
	defer w.Stop()
	go func() {
		for {
			if _, err := w.Next(ctx); err != nil {
				return
			}
			n.wake()
		}
	}()
	defer func() {
		n.mu.Lock()
		n.stopped = true
		n.settled.Broadcast()
		n.mu.Unlock()
	}()
	var serial uint32
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.kick:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(networkQuiet):
		}
		n.mu.Lock()
		round := n.asked
		n.mu.Unlock()
		serial++
		if err := n.sync(serial); err != nil {
			// The old rules are still in force; the next change tries again.
			n.log.Error("service addresses", "err", err)
		}
		n.mu.Lock()
		n.done = round
		n.settled.Broadcast()
		n.mu.Unlock()
	}
}

func (n *network) wake() {
	select {
	case n.kick <- struct{}{}:
	default:
	}
}

// Settle returns when everything the store holds now is in force, or ctx ends.
func (n *network) Settle(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() {
		n.mu.Lock()
		n.settled.Broadcast()
		n.mu.Unlock()
	})
	defer stop()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	round := n.asked
	n.wake()
	for n.done < round && !n.stopped && ctx.Err() == nil {
		n.settled.Wait()
	}
}

func (n *network) sync(serial uint32) error {
	services := store.List[*corev1.Service](n.store, "services", "", nil)
	slices := store.List[*discoveryv1.EndpointSlice](n.store, "endpointslices.discovery.k8s.io", "", nil)
	n.dns.Set(dns.NewZone(clusterDomain, serial, dns.Objects{
		Namespaces: store.List[*corev1.Namespace](n.store, "namespaces", "", nil),
		Services:   services, Slices: slices,
		Pods: store.List[*corev1.Pod](n.store, "pods", "", nil),
	}))
	return vip.Apply(vip.Rules{VIPs: vips(services, slices), Ranges: append(append([]netip.Prefix(nil), n.plan.Services...), n.plan.LBs...), Local: n.plan.DNS})
}

// vips says where each Service address leads: to the ready endpoints, or, when none is ready,
// to those that are terminating but still serve (Kubernetes: ProxyTerminatingEndpoints).
func vips(services []*corev1.Service, slices []*discoveryv1.EndpointSlice) []vip.VIP {
	byService := map[string][]*discoveryv1.EndpointSlice{}
	for _, s := range slices {
		k := s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]
		byService[k] = append(byService[k], s)
	}
	var out []vip.VIP
	for _, svc := range services {
		if svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.ClusterIP == corev1.ClusterIPNone {
			continue
		}
		addrs := append([]string(nil), svc.Spec.ClusterIPs...)
		for _, in := range svc.Status.LoadBalancer.Ingress {
			addrs = append(addrs, in.IP)
		}
		for _, p := range svc.Spec.Ports {
			proto := vip.TCP
			if p.Protocol == corev1.ProtocolUDP {
				proto = vip.UDP
			} else if p.Protocol != corev1.ProtocolTCP {
				continue
			}
			for _, a := range addrs {
				ip, err := netip.ParseAddr(a)
				if err != nil {
					continue
				}
				out = append(out, vip.VIP{Protocol: proto, Address: netip.AddrPortFrom(ip, uint16(p.Port)), Endpoints: endpointsOf(byService[svc.Namespace+"/"+svc.Name], p, ip.Is4())})
			}
		}
	}
	return out
}

func endpointsOf(slices []*discoveryv1.EndpointSlice, p corev1.ServicePort, v4 bool) []netip.AddrPort {
	var ready, leaving []netip.AddrPort
	for _, s := range slices {
		for _, sp := range s.Ports {
			if sp.Port == nil || sp.Name == nil || *sp.Name != p.Name || (sp.Protocol != nil && *sp.Protocol != p.Protocol) {
				continue
			}
			for _, e := range s.Endpoints {
				for _, a := range e.Addresses {
					ip, err := netip.ParseAddr(a)
					if err != nil || ip.Is4() != v4 {
						continue
					}
					ap := netip.AddrPortFrom(ip, uint16(*sp.Port))
					switch {
					case e.Conditions.Ready == nil || *e.Conditions.Ready:
						ready = append(ready, ap)
					case e.Conditions.Serving != nil && *e.Conditions.Serving:
						leaving = append(leaving, ap)
					}
				}
			}
		}
	}
	if len(ready) == 0 {
		ready = leaving
	}
	sort.Slice(ready, func(i, j int) bool { return ready[i].Compare(ready[j]) < 0 })
	return ready
}
