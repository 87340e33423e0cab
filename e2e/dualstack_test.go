package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// TestDualStackPods: both families of a pod are redirected, and a service is reached by both, by mutual TLS.
func TestDualStackPods(t *testing.T) {
	ns := strictEcho(t)
	echo := ns.pods("app=echo,version=v1")[0]
	if len(echo.Status.PodIPs) < 2 {
		t.Skip("this cluster has one address family")
	}
	for _, ip := range echo.Status.PodIPs {
		at := netip.AddrPortFrom(netip.MustParseAddr(ip.IP), 8080)
		outside(t).refused("http://" + at.String() + "/")
		// Nobody listens on 15099: only the redirection makes it answer.
		proof := outside(t).Call(fromClient, "http://"+netip.AddrPortFrom(at.Addr(), 15099).String()+"/healthz/ready")[0]
		if proof.Status != 200 {
			t.Errorf("redirect proof of %s: %+v, want 200", at.Addr(), proof)
		}
	}
	ns.Apply(`apiVersion: v1
kind: Service
metadata: {name: both}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: echo}
  ports: [{name: http, port: 80, targetPort: 8080}]
`)
	t.Cleanup(func() { ns.TryKubectl("delete", "service", "both") })
	ips := ns.Kubectl("get", "service", "both", "-o", "jsonpath={.spec.clusterIPs[*]}")
	var four, six bool
	for _, ip := range strings.Fields(ips) {
		addr := netip.MustParseAddr(ip)
		four, six = four || addr.Is4(), six || addr.Is6()
		Eventually(t, "the service answers at "+ip, func() error {
			r := ns.Call(fromClient, "-no-keepalive", "-H", "Host: both", "http://"+netip.AddrPortFrom(addr, 80).String()+"/")[0]
			if r.Status != 200 {
				return fmt.Errorf("status %d %s", r.Status, r.Error)
			}
			return hasCaller(r, "spiffe://cluster.local/ns/"+ns.Name+"/sa/client")
		})
	}
	if !four || !six {
		t.Errorf("the service has the addresses %s, want both families", ips)
	}
}
