package api

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/weft-mesh/weft/sandbox/store"
)

// Networks are the address ranges services draw from. The first prefix of
// each list is the sandbox's primary family (Kubernetes: --service-cluster-ip-range).
type Networks struct {
	ClusterIPs    []netip.Prefix
	LoadBalancers []netip.Prefix
}

func familyOf(p netip.Prefix) corev1.IPFamily {
	if p.Addr().Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// assignAddresses gives a service its ClusterIPs, families and, for type
// LoadBalancer, an address of its own, as Kubernetes does at creation. old is
// nil at creation; otherwise its addresses are kept.
func (s *Server) assignAddresses(svc, old *corev1.Service) field.ErrorList {
	spec := &svc.Spec
	at := field.NewPath("spec")
	if spec.Type == corev1.ServiceTypeExternalName {
		spec.ClusterIP, spec.ClusterIPs, spec.IPFamilies, spec.IPFamilyPolicy = "", nil, nil, nil
		return nil
	}
	if old != nil && old.Spec.ClusterIP != "" {
		if spec.ClusterIP != "" && spec.ClusterIP != old.Spec.ClusterIP {
			return field.ErrorList{field.Invalid(at.Child("clusterIP"), spec.ClusterIP, "field is immutable: delete the service and apply it again")}
		}
		spec.ClusterIP = old.Spec.ClusterIP
		if len(spec.ClusterIPs) == 0 {
			spec.ClusterIPs = old.Spec.ClusterIPs
		}
		if len(spec.IPFamilies) == 0 {
			spec.IPFamilies = old.Spec.IPFamilies
		}
	}
	setIfNil(&spec.IPFamilyPolicy, corev1.IPFamilyPolicySingleStack)
	if err := s.chooseFamilies(spec); err != nil {
		return field.ErrorList{err}
	}
	if spec.ClusterIP == corev1.ClusterIPNone || (len(spec.ClusterIPs) > 0 && spec.ClusterIPs[0] == corev1.ClusterIPNone) {
		spec.ClusterIP, spec.ClusterIPs = corev1.ClusterIPNone, []string{corev1.ClusterIPNone}
		return nil
	}
	taken := s.takenAddresses(svc)
	if spec.ClusterIP != "" && len(spec.ClusterIPs) == 0 {
		spec.ClusterIPs = []string{spec.ClusterIP}
	}
	if len(spec.ClusterIPs) > len(spec.IPFamilies) {
		spec.ClusterIPs = spec.ClusterIPs[:len(spec.IPFamilies)]
	}
	for i, given := range spec.ClusterIPs {
		ip, err := netip.ParseAddr(given)
		if err != nil {
			return field.ErrorList{field.Invalid(at.Child("clusterIPs").Index(i), given, "not an IP address")}
		}
		if owner, ok := taken[ip]; ok {
			return field.ErrorList{field.Invalid(at.Child("clusterIPs").Index(i), given, "already taken by service "+owner)}
		}
		if !s.inRange(s.Networks.ClusterIPs, ip) {
			return field.ErrorList{field.Invalid(at.Child("clusterIPs").Index(i), given, fmt.Sprintf("not in the service range %v", s.Networks.ClusterIPs))}
		}
		taken[ip] = svc.Name
	}
	for i := len(spec.ClusterIPs); i < len(spec.IPFamilies); i++ {
		ip, ok := s.free(s.Networks.ClusterIPs, spec.IPFamilies[i], taken)
		if !ok {
			return field.ErrorList{field.InternalError(at.Child("clusterIPs"), fmt.Errorf("no free %s address in %v", spec.IPFamilies[i], s.Networks.ClusterIPs))}
		}
		taken[ip] = svc.Name
		spec.ClusterIPs = append(spec.ClusterIPs, ip.String())
	}
	spec.ClusterIP = spec.ClusterIPs[0]
	if spec.Type == corev1.ServiceTypeLoadBalancer && len(svc.Status.LoadBalancer.Ingress) == 0 {
		for _, f := range spec.IPFamilies {
			if ip, ok := s.free(s.Networks.LoadBalancers, f, taken); ok {
				taken[ip] = svc.Name
				mode := corev1.LoadBalancerIPModeVIP
				svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip.String(), IPMode: &mode})
			}
		}
	}
	if spec.Type != corev1.ServiceTypeLoadBalancer {
		svc.Status.LoadBalancer = corev1.LoadBalancerStatus{}
	}
	return nil
}

func (s *Server) chooseFamilies(spec *corev1.ServiceSpec) *field.Error {
	at := field.NewPath("spec", "ipFamilies")
	have := map[corev1.IPFamily]bool{}
	for _, p := range s.Networks.ClusterIPs {
		have[familyOf(p)] = true
	}
	for i, f := range spec.IPFamilies {
		if !have[f] {
			return field.Invalid(at.Index(i), f, "this sandbox has no such addresses; start it with --ip-family=dual")
		}
	}
	want := 1
	switch *spec.IPFamilyPolicy {
	case corev1.IPFamilyPolicyPreferDualStack:
		want = len(s.Networks.ClusterIPs)
	case corev1.IPFamilyPolicyRequireDualStack:
		if want = 2; len(s.Networks.ClusterIPs) < 2 {
			return field.Invalid(field.NewPath("spec", "ipFamilyPolicy"), *spec.IPFamilyPolicy, "this sandbox has one address family; start it with --ip-family=dual")
		}
	}
	for _, p := range s.Networks.ClusterIPs {
		f := familyOf(p)
		listed := false
		for _, have := range spec.IPFamilies {
			listed = listed || have == f
		}
		if !listed && len(spec.IPFamilies) < want {
			spec.IPFamilies = append(spec.IPFamilies, f)
		}
	}
	if len(spec.IPFamilies) > want {
		spec.IPFamilies = spec.IPFamilies[:want]
	}
	return nil
}

func (s *Server) takenAddresses(except *corev1.Service) map[netip.Addr]string {
	taken := map[netip.Addr]string{}
	for _, ip := range s.Reserved {
		taken[ip] = "kubernetes"
	}
	for _, o := range store.List[*corev1.Service](s.Store, "services", "", nil) {
		if o.Namespace == except.Namespace && o.Name == except.Name {
			continue
		}
		ips := append([]string(nil), o.Spec.ClusterIPs...)
		for _, in := range o.Status.LoadBalancer.Ingress {
			ips = append(ips, in.IP)
		}
		for _, s := range ips {
			if ip, err := netip.ParseAddr(s); err == nil {
				taken[ip] = o.Namespace + "/" + o.Name
			}
		}
	}
	return taken
}

func (s *Server) inRange(ranges []netip.Prefix, ip netip.Addr) bool {
	for _, p := range ranges {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// free takes the lowest address that nobody has, so that a sandbox brought up
// twice from the same files looks the same. The first hundred stay free for
// services that ask for an address by number (kube-dns).
func (s *Server) free(ranges []netip.Prefix, family corev1.IPFamily, taken map[netip.Addr]string) (netip.Addr, bool) {
	for _, p := range ranges {
		if familyOf(p) != family {
			continue
		}
		ip := p.Masked().Addr()
		for range 100 {
			ip = ip.Next()
		}
		for ; p.Contains(ip); ip = ip.Next() {
			if _, used := taken[ip]; !used {
				return ip, true
			}
		}
	}
	return netip.Addr{}, false
}
