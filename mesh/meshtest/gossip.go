package meshtest

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	istio "istio.io/client-go/pkg/clientset/versioned/scheme"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	kubernetes "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

// gossip makes objects up.
type gossip struct {
	*rand.Rand
	t      testing.TB
	pool   []runtime.Object
	topics []int
}

// topics is how many cases document has.
const topics = 12

// object is a new one, or another of the name of one that there is.
func (g *gossip) object() runtime.Object {
	var o runtime.Object
	if g.IntN(5) == 0 && len(g.pool) > 0 {
		o = pick(g, g.pool...).DeepCopyObject()
	} else {
		o = Objects(g.t, g.document())[0]
	}
	o.(metav1.Object).SetCreationTimestamp(metav1.Unix(int64(1000+g.IntN(3)), 0)) // age decides; often several are equally old
	return o
}

func pick[T any](g *gossip, of ...T) T { return of[g.IntN(len(of))] }

// some is text in one of three cases.
func (g *gossip) some(text string) string { return pick(g, text, "", "") }

func (g *gossip) document() string {
	namespace := pick(g, "default", "default", "other", "istio-system")
	app := pick(g, "reviews", "ratings", "sleep")
	host := pick(g, app, app, app+".default", app+"."+namespace+".svc.cluster.local", "shop.example.com")
	version := pick(g, "v1", "v2")
	number := 1 + g.IntN(4)
	exportTo := g.some(pick(g, "  exportTo: [.]\n", "  exportTo: [other]\n"))
	switch pick(g, g.topics...) {
	case 0, 1:
		return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: %[1]s-%[2]d
  namespace: %[3]s
  labels: {app: %[1]s, version: %[4]s%[5]s}
  annotations: {%[6]s}
spec: {serviceAccountName: %[1]s, nodeName: %[7]s, containers: [{name: app, image: app, ports: [{name: web, containerPort: %[8]s}]}]}
status: {podIP: %[9]s, podIPs: [{ip: %[9]s}], phase: %[10]s}
`, app, number, namespace, version, g.some(pick(g, ", tier: a", ", istio: ingressgateway")), pick(g, "sidecar.istio.io/status: '{}'", ""),
			pick(g, "north", "south", "nowhere"), pick(g, "9080", "9081"), address(namespace, app, number), pick(g, "Running", "Running", "Succeeded"))
	case 2:
		return fmt.Sprintf(`apiVersion: v1
kind: Node
metadata: {name: %s, labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: %s}}
`, pick(g, "north", "south"), pick(g, "a", "b"))
	case 3:
		return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: %s, namespace: %s, annotations: {%s}}
spec:
  %s
  %s
  ports: [{name: %s, port: %s, targetPort: %s}%s]
`, app, namespace, g.some("networking.istio.io/exportTo: "+pick(g, ".", "'*'", "other")),
			pick(g, "clusterIP: 10.96.1."+fmt.Sprint(number), "clusterIP: None", "type: ExternalName\n  externalName: "+pick(g, "example.org", "ratings.default.svc.cluster.local")),
			pick(g, "selector: {app: "+app+"}", "selector: {app: "+app+", version: v1}", ""),
			pick(g, "http", "tcp", "grpc", "x", "https"), pick(g, "9080", "80"), pick(g, "9080", "web"), g.some(", {name: tcp-more, port: 9100}"))
	case 4, 5:
		var endpoints strings.Builder
		for range 1 + g.IntN(3) {
			n := 1 + g.IntN(4)
			fmt.Fprintf(&endpoints, "- {addresses: [%s], nodeName: %s, conditions: {ready: %s, serving: true, terminating: %s}%s}\n", address(namespace, app, n),
				pick(g, "north", "south"), pick(g, "true", "false"), pick(g, "true", "false"),
				pick(g, "", fmt.Sprintf(", targetRef: {kind: Pod, name: %s-%d, namespace: %s}", app, n, namespace)))
		}
		return fmt.Sprintf(`apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[1]s-%[2]d, namespace: %[3]s, labels: {kubernetes.io/service-name: %[1]s}}
addressType: IPv4
ports: [{name: %[4]s, port: 9080, protocol: TCP}, {name: tcp-more, port: 9100, protocol: TCP}]
endpoints:
%[5]s`, app, number%2, namespace, pick(g, "http", "tcp", "grpc", "x"), endpoints.String())
	case 6, 7, 8:
		match := pick(g, "", "", "uri: {prefix: /x}", "sourceLabels: {app: sleep}", "sourceLabels: {app: reviews, version: "+version+"}", "sourceLabels: {tier: a}",
			"sourceNamespace: other", "headers: {who: {exact: me}}", "port: 80")
		return fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: vs-%d, namespace: %s}
spec:
%s  hosts: [%s]
%s  %s
`, number, namespace, exportTo, pick(g, host, host, "'*.example.com'", "'*'", host+", late.example.com"), g.some("  gateways: [mesh, istio-system/edge]\n"),
			pick(g,
				"http: [{match: [{"+match+"}], timeout: "+fmt.Sprint(number)+"s, route: [{destination: {host: "+host+", subset: "+version+"}}]}, {route: [{destination: {host: "+app+"}}]}]",
				"http: [{route: [{destination: {host: reviews, subset: v1}, weight: 30}, {destination: {host: ratings.default.svc.cluster.local}, weight: 70}]}]",
				"http: [{match: [{"+match+"}], delegate: {name: part, namespace: default}}]",
				"tcp: [{route: [{destination: {host: "+host+", subset: v2}}]}]",
				"tls: [{match: [{sniHosts: ["+pick(g, "'*.example.com'", host)+"]}], route: [{destination: {host: "+host+"}}]}]"))
	case 9:
		return fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: dr-%d, namespace: %s}
spec:
%s  host: %s
  %s
  %s
`, number, namespace, exportTo, pick(g, host, "'*.default.svc.cluster.local'"),
			pick(g, "subsets: [{name: v1, labels: {version: v1}}]", "subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]", ""),
			pick(g, "", "trafficPolicy: {tls: {mode: DISABLE}}", "trafficPolicy: {outlierDetection: {consecutive5xxErrors: 2}}",
				"trafficPolicy: {connectionPool: {tcp: {maxConnections: "+fmt.Sprint(number)+"}}, portLevelSettings: [{port: {number: 9080}, loadBalancer: {simple: RANDOM}}]}"))
	case 10:
		return pick(g,
			fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: pa-%d, namespace: %s}\nspec: {%s mtls: {mode: %s}}\n",
				number%2, namespace, g.some("selector: {matchLabels: {app: "+app+"}}, portLevelMtls: {9080: {mode: DISABLE}},"), pick(g, "STRICT", "PERMISSIVE", "DISABLE", "UNSET")),
			fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: part, namespace: default}\nspec:\n%s  http: [{timeout: %ds, route: [{destination: {host: ratings}}]}]\n", exportTo, number),
			fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: se-%d, namespace: %s}\nspec: {hosts: [%s], location: MESH_INTERNAL, resolution: STATIC, ports: [{number: 80, name: %s, protocol: %s}], %s}\n",
				number%2, namespace, pick(g, "shop.example.com", "reviews.default.svc.cluster.local", "'*.example.com'"), pick(g, "web", "x"), pick(g, "HTTP", "TCP", "TLS"),
				pick(g, "workloadSelector: {labels: {app: "+app+"}}", "endpoints: [{address: 10.9.9.9, labels: {version: v1}}]")))
	default:
		return pick(g,
			fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: %q}\n",
				pick(g, "", "outboundTrafficPolicy: {mode: REGISTRY_ONLY}", "accessLogFile: /dev/stdout", "connectTimeout: 3s", "defaultServiceExportTo: ['.']",
					"defaultVirtualServiceExportTo: ['.']", "defaultDestinationRuleExportTo: ['.']", "enableAutoMtls: false", "trustDomain: other.example", "not: [yaml")),
			fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: edge, namespace: istio-system}\nspec: {selector: {%s}, servers: [{port: {number: %s, name: http, protocol: HTTP}, hosts: [%s]}]}\n",
				pick(g, "istio: ingressgateway", "app: sleep"), pick(g, "80", "8080"), pick(g, "'*'", "shop.example.com", "other/*")),
			"apiVersion: v1\nkind: Namespace\nmetadata: {name: "+namespace+", labels: {x: y"+fmt.Sprint(number)+"}}\n")
	}
}

// address gives each pod one of its own.
func address(namespace, app string, number int) string {
	return fmt.Sprintf("10.244.%d.%d", len(namespace), 10*len(app)+number+100*(strings.Count(app, "e")-1))
}

// Objects reads YAML documents with Kubernetes and Istio objects, strictly.
func Objects(t testing.TB, documents string) (out []runtime.Object) {
	t.Helper()
	scheme := runtime.NewScheme()
	_ = kubernetes.AddToScheme(scheme)
	_ = istio.AddToScheme(scheme)
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	for _, doc := range strings.Split(documents, "\n---\n") {
		json, err := yaml.YAMLToJSON([]byte(doc))
		if err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if string(json) == "null" {
			continue
		}
		o, _, err := decoder.Decode(json, nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		out = append(out, o)
	}
	return out
}
