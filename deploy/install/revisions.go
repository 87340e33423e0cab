package install

import (
	"context"
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Revision is one control plane, as it is in the cluster.
type Revision struct {
	Revision   string   `json:"revision"`
	Namespace  string   `json:"namespace"`
	Version    string   `json:"version"` // tag of its image
	Ready      string   `json:"ready"`   // "2/2" pods
	Tags       []string `json:"tags,omitempty"`
	Namespaces []string `json:"namespaces,omitempty"` // whose labels choose it
	Proxies    int      `json:"proxies"`              // running pods that were injected by it
	Gateways   []string `json:"gateways,omitempty"`
	Profile    string   `json:"profile,omitempty"`
	Foreign    bool     `json:"foreign,omitempty"` // another mesh's control plane
	Image      string   `json:"image"`
	Webhooks   []string `json:"webhooks,omitempty"`
}

// Revisions lists the control planes of the cluster, those of Istio too; namespace "" means everywhere.
func (c *Cluster) Revisions(ctx context.Context, namespace string) ([]Revision, error) {
	deployments, err := c.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=istiod"})
	if err != nil {
		return nil, fmt.Errorf("list control planes: %w", c.unreachable(err))
	}
	hooks, err := c.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{LabelSelector: "app=sidecar-injector"})
	if err != nil {
		return nil, fmt.Errorf("list webhooks: %w", err)
	}
	namespaces, err := c.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	pods, err := c.meshPods(ctx)
	if err != nil {
		return nil, err
	}
	var out []Revision
	for _, d := range deployments.Items {
		r := Revision{Revision: d.Labels["istio.io/rev"], Namespace: d.Namespace, Ready: fmt.Sprintf("%d/%d", d.Status.AvailableReplicas, d.Status.Replicas)}
		if r.Revision == "" {
			r.Revision = "default"
		}
		for _, k := range d.Spec.Template.Spec.Containers {
			if k.Name == "discovery" {
				r.Image = k.Image
				r.Version = tagOf(k.Image)
			}
		}
		r.Foreign = d.Labels[partOf] != "weft"
		for _, h := range hooks.Items {
			if h.Labels["istio.io/rev"] != r.Revision || !calls(&h, d.Namespace) {
				continue
			}
			r.Webhooks = append(r.Webhooks, h.Name)
			if tag := h.Labels["istio.io/tag"]; tag != "" {
				r.Tags = append(r.Tags, tag)
			}
		}
		if state, err := c.recorded(ctx, d.Namespace, r.Revision); err == nil && state != nil {
			if v, ok := get(state.Object, "spec", "profile"); ok {
				r.Profile, _ = v.(string)
			}
		}
		for _, ns := range namespaces.Items {
			if r.chosenBy(&ns) {
				r.Namespaces = append(r.Namespaces, ns.Name)
			}
		}
		for _, p := range pods {
			if p.revision == r.Revision {
				r.Proxies++
				if p.gateway {
					r.Gateways = append(r.Gateways, p.Namespace+"/"+p.Name)
				}
			}
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Revision) int {
		return strings.Compare(a.Namespace+"/"+a.Revision, b.Namespace+"/"+b.Revision)
	})
	return out, nil
}

// calls says whether a webhook configuration is of a control plane in a namespace; one that is called by URL may be anybody's.
func calls(h *admissionv1.MutatingWebhookConfiguration, namespace string) bool {
	for _, w := range h.Webhooks {
		if s := w.ClientConfig.Service; s != nil {
			return s.Namespace == namespace
		}
	}
	return true
}

// chosenBy says whether a namespace's labels mean this revision or one of its tags.
func (r *Revision) chosenBy(ns *corev1.Namespace) bool {
	if v := ns.Labels["istio-injection"]; v != "" {
		return v == "enabled" && (slices.Contains(r.Tags, "default") || r.Revision == "default" && !slices.Contains(r.Tags, "default"))
	}
	rev := ns.Labels["istio.io/rev"]
	return rev != "" && (rev == r.Revision || slices.Contains(r.Tags, rev))
}

// tagOf is the tag of an image, or what stands behind "@".
func tagOf(image string) string {
	if _, digest, ok := strings.Cut(image, "@"); ok {
		return digest
	}
	i := strings.LastIndexByte(image, ':')
	if i < 0 || strings.Contains(image[i:], "/") {
		return "latest"
	}
	return image[i+1:]
}

// meshPod is a running pod with a proxy.
type meshPod struct {
	*corev1.Pod
	revision, image string
	gateway         bool
}

// meshPods are all pods with a proxy that have not ended.
func (c *Cluster) meshPods(ctx context.Context) ([]meshPod, error) {
	var out []meshPod
	list := metav1.ListOptions{LabelSelector: "service.istio.io/canonical-name", Limit: 500}
	for {
		pods, err := c.CoreV1().Pods("").List(ctx, list)
		if err != nil {
			return nil, fmt.Errorf("list pods: %w", err)
		}
		for i := range pods.Items {
			if p, ok := asMeshPod(&pods.Items[i]); ok {
				out = append(out, p)
			}
		}
		if list.Continue = pods.Continue; list.Continue == "" {
			return out, nil
		}
	}
}

func asMeshPod(p *corev1.Pod) (meshPod, bool) {
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || p.Annotations["sidecar.istio.io/status"] == "" {
		return meshPod{}, false
	}
	m := meshPod{Pod: p, image: proxyOf(p), revision: p.Labels["istio.io/rev"], gateway: strings.Contains(p.Annotations["inject.istio.io/templates"], "gateway")}
	if r := revisionIn(p.Annotations["sidecar.istio.io/status"]); r != "" {
		m.revision = r // a tag in the label would say less
	}
	if m.revision == "" {
		m.revision = "default"
	}
	return m, m.image != ""
}

// webhookOf finds the injector of a revision.
func (c *Cluster) webhookOf(ctx context.Context, revision string) (*admissionv1.MutatingWebhookConfiguration, error) {
	list, err := c.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{LabelSelector: "app=sidecar-injector,istio.io/rev=" + revision + ",!istio.io/tag"})
	if err != nil {
		return nil, fmt.Errorf("list webhooks: %w", c.unreachable(err))
	}
	if len(list.Items) == 0 {
		return nil, fmt.Errorf("no control plane has revision %q: weft revision list shows those that there are", revision)
	}
	return &list.Items[0], nil
}
