package mesh

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// exportToAnnotation is exportTo for a Kubernetes Service: namespaces separated by commas.
const exportToAnnotation = "networking.istio.io/exportTo"

// serviceOf converts a Kubernetes Service. Ports that are not TCP are left out: the mesh does not touch them.
func serviceOf(in *corev1.Service, meta Meta, clusterDomain string) *Service {
	s := &Service{
		Meta: meta,
		Host: in.Name + "." + in.Namespace + ".svc." + clusterDomain,
	}
	s.id = serviceID(s.Host, s.Namespace, s.Kind, s.Name)
	if to, ok := in.Annotations[exportToAnnotation]; ok {
		for e := range strings.SplitSeq(to, ",") {
			if e = strings.TrimSpace(e); e != "" {
				s.ExportTo = append(s.ExportTo, e)
			}
		}
	}
	if len(in.Spec.Selector) > 0 {
		s.Selector = in.Spec.Selector
	}
	switch {
	case in.Spec.Type == corev1.ServiceTypeExternalName:
		s.Resolution, s.ExternalName, s.External = ResolutionDNS, strings.TrimSuffix(in.Spec.ExternalName, "."), true
		s.Selector = nil
	case in.Spec.ClusterIP == corev1.ClusterIPNone:
		s.Resolution = ResolutionHeadless
	default:
		ips := in.Spec.ClusterIPs
		if len(ips) == 0 {
			ips = []string{in.Spec.ClusterIP}
		}
		for _, ip := range ips {
			if a, err := netip.ParseAddr(ip); err == nil {
				s.Addresses = append(s.Addresses, a.Unmap())
			}
		}
	}
	for _, p := range in.Spec.Ports {
		proto := ProtocolOf(uint16(p.Port), p.Name, p.AppProtocol, string(p.Protocol))
		if proto == ProtocolUDP {
			continue
		}
		port := Port{Name: p.Name, Number: uint16(p.Port), Protocol: proto}
		switch {
		case p.TargetPort.Type == intstr.String && p.TargetPort.StrVal != "":
			port.TargetName = p.TargetPort.StrVal
		case p.TargetPort.IntVal != 0:
			port.TargetPort = uint16(p.TargetPort.IntVal)
		default:
			port.TargetPort = port.Number
		}
		s.Ports = append(s.Ports, port)
	}
	slices.SortStableFunc(s.Ports, func(a, b Port) int { return int(a.Number) - int(b.Number) })
	return s
}
