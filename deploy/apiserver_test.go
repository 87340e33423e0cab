package deploy_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/weft-mesh/weft/deploy"
	"github.com/weft-mesh/weft/e2e/kubernetes"
)

// variants are values that reach each branch of the templates, by chart.
var variants = map[string][]string{
	deploy.Base: {"{}", `
defaultRevision: canary
base: {validationURL: "https://istiod.example.com/validate", validationCABundle: Zm9v, excludedCRDs: [wasmplugins.extensions.istio.io]}`, `
defaultRevision: ""
base: {enableCRDTemplates: false}`},
	deploy.Istiod: {"{}", `
revision: canary
revisionTags: [prod, default]
pilot:
  autoscaleBehavior: {scaleDown: {stabilizationWindowSeconds: 60}}
  memory: {targetAverageUtilization: 70}
  resources: {requests: {cpu: 10m, memory: 64Mi}, limits: {memory: 1Gi}}
  env: {PILOT_DEBOUNCE_AFTER: 100ms, N: 1, B: true}
  envVarFrom: [{name: X, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
  extraContainerArgs: [--svid-ttl=12h]
  podAnnotations: {a: b}
  podLabels: {c: d}
  deploymentLabels: {e: f}
  serviceAnnotations: {g: h}
  serviceAccountAnnotations: {i: j}
  sidecarInjectorWebhookAnnotations: {k: l}
  nodeSelector: {kubernetes.io/os: linux}
  tolerations: [{operator: Exists}]
  affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: x, operator: Exists}]}]}}}
  topologySpreadConstraints: [{topologyKey: kubernetes.io/hostname, maxSkew: 1, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: istiod}}}]
  ipFamilyPolicy: SingleStack
  ipFamilies: [IPv4]
  volumes: [{name: v, emptyDir: {}}]
  volumeMounts: [{name: v, mountPath: /v}]
  podDisruptionBudget: {minAvailable: 2}
  gatewaySecretsClusterWide: true
sidecarInjectorWebhook:
  enableNamespacesByDefault: true
  reinvocationPolicy: Never
  neverInjectSelector: [{matchLabels: {x: "y"}}]
  templates: {mine: "spec: {}"}
  defaultTemplates: [sidecar, mine]
meshConfig: {accessLogFile: /dev/stdout}
global:
  imagePullPolicy: Always
  imagePullSecrets: [s]
  priorityClassName: system-cluster-critical
  networkPolicy: {enabled: true}
  logAsJson: true
  logging: {level: "default:debug,ads:info"}
  proxy: {tracer: datadog, excludeInboundPorts: 8080, image: example.com/envoy:1}`, `
replicaCount: 3
autoscaleEnabled: false
configMap: false
global: {platform: openshift, configValidation: false, defaultPodDisruptionBudget: {enabled: false}, proxy: {tracer: lightstep}}`},
	deploy.CNI: {"{}", `
cni:
  chained: false
  logLevel: debug
  pullPolicy: Never
  taint: {enabled: false}
  inotifyInstances: 0
  env: {A: 1}
  extraContainerArgs: [--backend=nftables]
  seLinuxOptions: {type: spc_t}
  resources: {limits: {memory: 100Mi}}
  podAnnotations: {a: b}
  podLabels: {c: d}
  daemonSetLabels: {e: f}
  nodeSelector: {x: "y"}
  affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: x, operator: Exists}]}]}}}
global: {platform: gke, logAsJson: true, imagePullSecrets: [s], networkPolicy: {enabled: true}}`, `
global: {platform: openshift}`, "global: {platform: microk8s}", "cni: {uninstall: true}"},
	deploy.Gateway: {"{}", `
name: istio-eastwestgateway
revision: canary
kind: DaemonSet
networkGateway: net1
strategy: {rollingUpdate: {maxUnavailable: 1}}
minReadySeconds: 5
labels: {app: east, istio: west, x: "1"}
annotations: {a: b}
env: {ISTIO_META_ROUTER_MODE: sni-dnat, N: 1}
service: {type: NodePort, externalTrafficPolicy: Local, externalIPs: [192.0.2.1], sessionAffinity: ClientIP, annotations: {c: d}, ipFamilies: [IPv4], ipFamilyPolicy: SingleStack}
serviceAccount: {name: someone, annotations: {e: f}}
podDisruptionBudget: {minAvailable: 1}
networkPolicy: {enabled: true}
imagePullPolicy: IfNotPresent
imagePullSecrets: [{name: s}]
nodeSelector: {x: "y"}
tolerations: [{operator: Exists}]
volumes: [{name: v, emptyDir: {}}]
volumeMounts: [{name: v, mountPath: /v}]
lifecycle: {preStop: {sleep: {seconds: 5}}}
readinessProbe: {httpGet: {path: /x, port: 15021}}
priorityClassName: system-cluster-critical
rbac: {serviceAccounts: [other]}
global: {istioNamespace: mesh}`, `
replicaCount: 3
autoscaling: {enabled: false}
rbac: {enabled: false}
serviceAccount: {create: false}
service: {type: None}
topologySpreadConstraints: [{topologyKey: kubernetes.io/hostname, maxSkew: 1, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: istiod}}}]
securityContext: {runAsNonRoot: true, runAsUser: 1, seccompProfile: {type: RuntimeDefault}}
containerSecurityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}`, `
autoscaling: {targetMemoryUtilizationPercentage: 70, autoscaleBehavior: {scaleDown: {stabilizationWindowSeconds: 60}}}
service: {type: LoadBalancer, loadBalancerIP: 192.0.2.1, loadBalancerClass: example.com/lb, loadBalancerSourceRanges: [192.0.2.0/24], externalTrafficPolicy: Local}
global: {platform: openshift}`},
}

func namespaceObject(name, podSecurity string) *corev1.Namespace {
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if podSecurity != "" {
		n.Labels = map[string]string{"pod-security.kubernetes.io/enforce": podSecurity}
	}
	return n
}

func TestAnAPIServerAcceptsWhatTheChartsBecome(t *testing.T) {
	api := kubernetes.StartAPIServer(t)
	c := api.Client()
	for name, level := range map[string]string{namespace: "", "restricted": "restricted", "baseline": "baseline"} {
		if err := c.Create(t.Context(), namespaceObject(name, level)); err != nil {
			t.Fatal(err)
		}
	}
	for _, chart := range deploy.Names {
		for _, values := range variants[chart] {
			r := render(t, chart, values)
			for _, o := range objects(t, r) {
				if err := dryRun(t.Context(), c, o); err != nil {
					t.Errorf("chart %s with %s\n%s %s: %v", chart, values, o.GetKind(), o.GetName(), err)
				}
				template, found, _ := unstructured.NestedMap(o.Object, "spec", "template")
				if !found {
					continue
				}
				pod := &unstructured.Unstructured{Object: template}
				pod.SetAPIVersion("v1")
				pod.SetKind("Pod")
				pod.SetName("p")
				// Of the node agent's pods the point is that nobody lets them in by accident.
				pod.SetNamespace("restricted")
				unstructured.RemoveNestedField(pod.Object, "spec", "priorityClassName")
				err := dryRun(t.Context(), c, pod)
				if chart != deploy.CNI && err != nil {
					t.Errorf("chart %s with %s: Pod Security refuses the pods of %s: %v", chart, values, o.GetName(), err)
				}
				if chart == deploy.CNI && !apierrors.IsForbidden(err) {
					t.Errorf("the agent's pod in a restricted namespace: %v", err)
				}
				if chart == deploy.CNI {
					pod.SetNamespace(namespace)
					if err := dryRun(t.Context(), c, pod); err != nil {
						t.Errorf("the agent's pod with %s: %v", values, err)
					}
				}
			}
		}
	}
}

// dryRun lets an API server judge an object, unknown fields included.
func dryRun(ctx context.Context, c client.Client, o *unstructured.Unstructured) error {
	o = o.DeepCopy()
	return client.WithFieldValidation(c, metav1.FieldValidationStrict).Create(ctx, o, client.DryRunAll)
}

// Templates that no variant reaches are not tested by the above.
func TestVariantsReachAllTemplates(t *testing.T) {
	for _, chart := range deploy.Names {
		var sources []string
		for _, values := range variants[chart] {
			for _, d := range render(t, chart, values).Documents {
				sources = append(sources, d.Source)
			}
		}
		files, err := deploy.Charts.ReadDir("charts/" + chart + "/templates")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if strings.HasSuffix(f.Name(), ".yaml") && !slices.Contains(sources, chart+"/templates/"+f.Name()) {
				t.Errorf("no variant renders %s/templates/%s", chart, f.Name())
			}
		}
	}
}

// The control plane and gateways in Pod Security's words; the agent in numbers, since it is the one exception.
func TestTheNodeAgentHasTwoCapabilitiesAndNothingOfTheHostsNamespaces(t *testing.T) {
	d := object[appsv1.DaemonSet](t, render(t, deploy.CNI, "{}"), "DaemonSet", "")
	s := d.Spec.Template.Spec
	if s.HostNetwork || s.HostPID || s.HostIPC || len(s.Containers) != 1 || len(s.InitContainers) != 0 {
		t.Errorf("host namespaces, or further containers: %+v", s)
	}
	sc := s.Containers[0].SecurityContext
	if *sc.Privileged || *sc.AllowPrivilegeEscalation || !*sc.ReadOnlyRootFilesystem || !slices.Equal(sc.Capabilities.Drop, []corev1.Capability{"ALL"}) ||
		!slices.Equal(sc.Capabilities.Add, []corev1.Capability{"SYS_ADMIN", "NET_ADMIN"}) || sc.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("got %+v", sc)
	}
	if s.Containers[0].Lifecycle != nil {
		t.Error("a hook would take the node apart at each upgrade")
	}
}
