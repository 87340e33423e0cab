package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
)

const ingress = "http://istio-ingressgateway.istio-system"

var ingressOnce sync.Once

// withIngress waits for the ingress gateway: the installed one, else the sample's, until the end of all scenarios.
func withIngress(ns *Namespace) {
	ns.T.Helper()
	ingressOnce.Do(func() {
		if out := ns.run("", "get", "deploy", "-n", "istio-system", "-l", "istio=ingressgateway", "-o", "name"); strings.Contains(out, "ingressgateway") {
			return
		}
		yaml := sample(ns.T.(*testing.T), "ingressgateway.yaml")
		ns.run(yaml, "apply", "-f", "-")
		if ns.Cluster.Kubernetes() {
			deferToEnd(func(ctx context.Context) error {
				_, err := ns.Cluster.Run(ctx, yaml, "delete", "--wait=false", "-f", "-")
				return err
			})
		}
	})
	ns.run("", "rollout", "status", "-n", "istio-system", "deploy/istio-ingressgateway", "--timeout=90s")
}

func gateway(hosts string) string {
	return `apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: web}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 80, name: http, protocol: HTTP}
    hosts: [` + hosts + `]
---
`
}

// echoAt is a gateway that sends all requests for a host to echo.
func echoAt(host string) string {
	return gateway(host) + `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [` + host + `]
  gateways: [web]
  http:
  - route:
    - destination: {host: echo}
`
}

func TestS05BookinfoThroughTheIngressGateway(t *testing.T) {
	ns, plain := meshed(t), outside(t)
	withIngress(ns)
	ns.Apply(sample(t, "bookinfo.yaml"))
	ns.Apply(sample(t, "networking/bookinfo-gateway.yaml"))
	for _, d := range []string{"details-v1", "ratings-v1", "reviews-v1", "reviews-v2", "reviews-v3", "productpage-v1"} {
		ns.WaitRollout(d)
	}
	Eventually(t, "the page", func() error {
		r := plain.Call(fromClient, ingress+"/productpage")[0]
		for _, want := range []string{"Bookinfo Product Page", "William Shakespeare", "Reviews served by"} {
			if r.Status != 200 || !strings.Contains(r.Body, want) {
				return fmt.Errorf("status %d, no %q in %.300s %s", r.Status, want, r.Body, r.Error)
			}
		}
		return nil
	})
	seen := map[string]int{}
	for _, r := range plain.Call(fromClient, "-n", "60", ingress+"/productpage") {
		for _, v := range []string{"v1", "v2", "v3"} {
			if strings.Contains(r.Body, "reviews-"+v+"<") {
				seen[v]++
			}
		}
	}
	if len(seen) != 3 {
		t.Errorf("reviews were served by %v, want three versions", seen)
	}
}

func TestS13RedirectAtTheGateway(t *testing.T) {
	ns, plain := meshed(t), outside(t)
	withIngress(ns)
	ns.Deploy(App{Name: "echo"})
	ns.Apply(gateway("fe.dujie.com") + `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [fe.dujie.com]
  gateways: [web]
  http:
  - name: redirect
    match:
    - uri: {prefix: /backend}
    redirect: {uri: /, authority: dycloud.fun, port: 80}
  - route:
    - destination: {host: echo}
`)
	Eventually(t, "redirect", func() error {
		r := plain.Call(fromClient, "-H", "Host: fe.dujie.com", ingress+"/backend")[0]
		if r.Status != 301 || r.Header("location") != "http://dycloud.fun/" || r.Header("server") != "istio-envoy" {
			return fmt.Errorf("status %d, location %q, server %q %s", r.Status, r.Header("location"), r.Header("server"), r.Error)
		}
		return nil
	})
}

func TestS32GatewayRoutesItsHosts(t *testing.T) {
	ns, plain := meshed(t), outside(t)
	withIngress(ns)
	ns.Deploy(App{Name: "echo"})
	ns.Apply(gateway("store.example.com, '*.shop.example.com'") + `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [store.example.com, a.shop.example.com]
  gateways: [web]
  http:
  - route:
    - destination: {host: echo}
`)
	Eventually(t, "matching host", func() error {
		r := plain.Call(fromClient, "-H", "Host: store.example.com", ingress+"/items")[0]
		if r.Status != 200 || r.Header("server") != "istio-envoy" || r.Header("x-envoy-upstream-service-time") == "" {
			return fmt.Errorf("status %d, headers %v %s", r.Status, r.Headers, r.Error)
		}
		if seen := r.Seen(); seen.Path != "/items" || seen.Host != "store.example.com" {
			return fmt.Errorf("the app saw %+v", seen)
		}
		return nil
	})
	if r := plain.Call(fromClient, "-H", "Host: a.shop.example.com", ingress+"/")[0]; r.Status != 200 {
		t.Errorf("wildcard host: %d, want 200", r.Status)
	}
	for _, host := range []string{"unknown.example.com", "b.shop.example.com"} {
		if r := plain.Call(fromClient, "-H", "Host: "+host, ingress+"/")[0]; r.Status != 404 {
			t.Errorf("host %s: %d, want 404", host, r.Status)
		}
	}
}
