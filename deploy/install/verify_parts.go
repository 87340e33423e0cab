package install

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	helm "helm.sh/helm/v4/pkg/release/v1"

	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/webhook"
)

// nodeTaint is the node agent's, on nodes whose CNI chain is broken.
const nodeTaint = "cni.istio.io/not-ready"

// verifyNodes looks at what the node agents say about their nodes.
func (c *Cluster) verifyNodes(ctx context.Context, v *Verification, releases []*helm.Release) {
	if !slices.ContainsFunc(releases, func(r *helm.Release) bool { return r.Chart.Metadata.Name == "cni" }) {
		v.add(Check{Status: Failed, Object: "node agent", Message: "Helm release istio-cni is not installed: without the node agent every meshed pod waits for its redirection for ever", Remedy: "weft install"})
		return
	}
	nodes, err := c.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		v.add(Check{Status: Warning, Object: "nodes", Message: "they cannot be read: " + err.Error()})
		return
	}
	guarded, err := c.guardedNodes(ctx, releases)
	if err != nil {
		v.add(Check{Status: Warning, Object: "node agents", Message: "they cannot be read: " + err.Error()})
	}
	known := make([]mesh.Node, 0, len(nodes.Items))
	for _, n := range nodes.Items {
		known = append(known, mesh.NodeOf(&n))
		if !nodeReady(&n) {
			v.add(Check{Status: Warning, Object: "Node " + n.Name, Message: "it is not ready, so no pod starts there: " + notReadyBecause(&n)})
		}
		if nodeReady(&n) && err == nil && !guarded[n.Name] && n.Status.NodeInfo.OperatingSystem != "windows" {
			v.add(Check{Status: Failed, Object: "Node " + n.Name, Message: "no node agent runs there: what breaks its CNI chain is neither seen nor repaired",
				Remedy: "kubectl get daemonset -n " + v.Namespace + " weft-node; its selectors and tolerations must let it onto every node that takes meshed pods"})
		}
		i := slices.IndexFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == nodeTaint })
		if i < 0 {
			continue
		}
		why := "its node agent has not reported yet"
		for _, e := range c.events(ctx, "default", "Node", n.Name) {
			if e.Reason == "MeshCNIBroken" {
				why = e.Message
			}
		}
		v.add(Check{Status: Failed, Object: "Node " + n.Name, Message: "takes no meshed pods (taint " + nodeTaint + "): " + why,
			Remedy: "docs/node.md says how the chain is kept; the agent's log has more: kubectl logs -n " + v.Namespace + " -l k8s-app=istio-cni-node"})
	}
	if slices.ContainsFunc(releases, choosesGate) {
		gate := Check{Status: OK, Object: "start gate", Message: "pods of the mesh start without delay: every node holds the hook's request"}
		if reason := webhook.AllHold(known); reason != "" {
			gate.Message = "pods of the mesh start a second later than others (startup probe), since " + reason
		}
		v.add(gate)
	}
}

// choosesGate: this control plane chooses between hook and startup probe by what its nodes can do.
func choosesGate(r *helm.Release) bool {
	gate, set := get(r.Config, "global", "proxy", "startGate")
	return r.Chart.Metadata.Name == "istiod" && (!set || gate == string(webhook.GateAuto))
}

// guardedNodes are those with a node agent of ours that is ready.
func (c *Cluster) guardedNodes(ctx context.Context, releases []*helm.Release) (map[string]bool, error) {
	out := map[string]bool{}
	for _, r := range releases {
		if r.Chart.Metadata.Name != "cni" {
			continue
		}
		pods, err := c.CoreV1().Pods(r.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "k8s-app=istio-cni-node," + partOf + "=weft"})
		if err != nil {
			return nil, err
		}
		for _, p := range pods.Items {
			out[p.Spec.NodeName] = out[p.Spec.NodeName] || slices.ContainsFunc(p.Status.Conditions, func(k corev1.PodCondition) bool {
				return k.Type == corev1.PodReady && k.Status == corev1.ConditionTrue
			})
		}
	}
	return out, nil
}

// events of an object, oldest first.
func (c *Cluster) events(ctx context.Context, ns, kind, name string) []corev1.Event {
	list, err := c.CoreV1().Events(ns).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.kind=" + kind + ",involvedObject.name=" + name})
	if err != nil {
		return nil
	}
	slices.SortFunc(list.Items, func(a, b corev1.Event) int { return a.LastTimestamp.Compare(b.LastTimestamp.Time) })
	return list.Items
}

// verifyAuthority checks that the webhooks trust the authority that signs the control plane's certificate.
func (c *Cluster) verifyAuthority(ctx context.Context, v *Verification, releases []*helm.Release) {
	if !slices.ContainsFunc(releases, func(r *helm.Release) bool { return r.Chart.Metadata.Name == "istiod" }) {
		return // said before
	}
	config, err := c.CoreV1().ConfigMaps(v.Namespace).Get(ctx, "istio-ca-root-cert", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		v.add(Check{Status: Failed, Object: "ConfigMap " + v.Namespace + "/istio-ca-root-cert", Message: "it does not exist: the control plane has not come up", Remedy: "kubectl logs -n " + v.Namespace + " -l app=istiod"})
		return
	}
	if err != nil {
		v.add(Check{Status: Warning, Object: "ConfigMap " + v.Namespace + "/istio-ca-root-cert", Message: err.Error()})
		return
	}
	roots := certificates([]byte(config.Data["root-cert.pem"]))
	check := func(kind, name, hook string, bundle []byte) {
		if len(bundle) == 0 {
			return // said before
		}
		for _, have := range certificates(bundle) {
			if slices.ContainsFunc(roots, have.Equal) {
				return
			}
		}
		v.add(Check{Status: Failed, Object: kind + " " + name, Message: fmt.Sprintf("caBundle of webhook %s is not the mesh's authority: the API server will refuse to call it, and pods of the mesh cannot be created", hook),
			Remedy: "the control plane writes it within seconds when it may: look at its log (kubectl logs -n " + v.Namespace + " -l app=istiod), and whether another program (GitOps) writes caBundle too"})
	}
	for _, rel := range releases {
		objects, err := objectsOf(rel.Manifest, rel.Namespace)
		if err != nil {
			continue
		}
		for _, o := range objects {
			switch o.Kind {
			case "MutatingWebhookConfiguration":
				if w, err := c.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, o.Name, metav1.GetOptions{}); err == nil {
					for _, h := range w.Webhooks {
						check(o.Kind, o.Name, h.Name, h.ClientConfig.CABundle)
					}
				}
			case "ValidatingWebhookConfiguration":
				if w, err := c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, o.Name, metav1.GetOptions{}); err == nil {
					for _, h := range w.Webhooks {
						check(o.Kind, o.Name, h.Name, h.ClientConfig.CABundle)
					}
				}
			}
		}
	}
}

func certificates(text []byte) []*x509.Certificate {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return out
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			out = append(out, cert)
		}
	}
}

// verifyInjection asks the API server what it would make of a pod (a dry run: nothing is created). That proves the whole way:
// API server, network, certificate, webhook.
func (c *Cluster) verifyInjection(ctx context.Context, v *Verification, releases []*helm.Release) {
	if !slices.ContainsFunc(releases, func(r *helm.Release) bool { return r.Chart.Metadata.Name == "istiod" }) {
		return
	}
	const ns = triedIn
	check := Check{Status: OK, Object: "injection (dry run of a pod in namespace " + ns + ")"}
	space, err := c.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{})
	if err == nil && (space.Labels["istio-injection"] == "disabled" || space.Labels["istio.io/rev"] != "" && space.Labels["istio.io/rev"] != v.Revision || space.Labels["istio-injection"] == "enabled" && v.Revision != "default") {
		check.Status, check.Message = Warning, "not tried: labels of the namespace decide otherwise"
		v.add(check)
		return
	}
	made, err := c.dryRunPod(ctx, v.Revision)
	switch {
	case err == nil && proxyOf(made) != "":
	case apierrors.IsForbidden(err) && !strings.Contains(err.Error(), "admission webhook"):
		check.Status, check.Message = Warning, "not tried: "+err.Error()
	case err != nil && strings.Contains(err.Error(), "failed calling webhook"):
		check.Status, check.Message = Failed, "the API server cannot call the webhook: "+err.Error()
		check.Remedy = "let the API server reach port 15017 of the control plane's pods (GKE private clusters: a firewall rule), and look at verify-install's lines about istiod"
		if strings.Contains(err.Error(), "x509") {
			check.Remedy = "the webhook's caBundle and the control plane's certificate do not fit: restart the control plane (kubectl rollout restart -n " + v.Namespace + " deployment/istiod" + suffix(v.Revision) + ")"
		}
	case err != nil:
		check.Status, check.Message = Failed, err.Error()
	default:
		check.Status, check.Message = Failed, "the pod would get no sidecar: no webhook selects it"
		check.Remedy = "weft install puts the webhooks back"
	}
	v.add(check)
}

// triedIn is the namespace of dry runs: it exists in every cluster.
const triedIn = "default"

// dryRunPod asks the API server for a pod of the mesh as it would be stored. Nothing is created.
func (c *Cluster) dryRunPod(ctx context.Context, revision string) (*corev1.Pod, error) {
	no, yes, user := false, true, int64(1000)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "weft-verify-", Labels: map[string]string{"sidecar.istio.io/inject": "true"}},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: &no,
			SecurityContext:              &corev1.PodSecurityContext{RunAsNonRoot: &yes, RunAsUser: &user, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
			Containers: []corev1.Container{{Name: "app", Image: "weft-verify", SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			}}},
		},
	}
	if revision != "default" {
		pod.Labels["istio.io/rev"] = revision
	}
	return c.CoreV1().Pods(triedIn).Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
}

// proxyOf is the image of a pod's sidecar, empty when it has none.
func proxyOf(p *corev1.Pod) string {
	if k := proxyIn(p); k != nil {
		return k.Image
	}
	return ""
}

// proxyIn is the container of a pod's proxy; nil when it has none.
func proxyIn(p *corev1.Pod) *corev1.Container {
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if list[i].Name == "istio-proxy" {
				return &list[i]
			}
		}
	}
	return nil
}
