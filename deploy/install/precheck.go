package install

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/Masterminds/semver/v3"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weft-mesh/weft/deploy"
	"github.com/weft-mesh/weft/deploy/release"
)

// Prechecks is what was found on a cluster before an installation or an upgrade.
type Prechecks struct {
	Cluster string  `json:"cluster"`
	Checks  []Check `json:"checks"`
}

// Count returns how many checks ended so.
func (p *Prechecks) Count(s Status) int {
	n := 0
	for _, c := range p.Checks {
		if c.Status == s {
			n++
		}
	}
	return n
}

func (p *Prechecks) add(c Check) { p.Checks = append(p.Checks, c) }

// Precheck looks whether a plan can be installed: version, permissions, what is there of another mesh, nodes, network.
// Nothing is changed.
func (c *Cluster) Precheck(ctx context.Context, plan *Plan) (*Prechecks, error) {
	if err := c.Reachable(); err != nil {
		return nil, err
	}
	p := &Prechecks{Cluster: c.Host()}
	c.checkVersion(p)
	for _, look := range []func(context.Context, *Prechecks, *Plan) error{
		c.checkControlPlanes, c.checkPermissions, c.checkWebhooks, c.checkNamespace, c.checkNodes, c.checkNetwork,
	} {
		if err := look(ctx, p, plan); err != nil {
			return nil, c.unreachable(err)
		}
	}
	return p, nil
}

// checkVersion compares the API server with what the charts need.
func (c *Cluster) checkVersion(p *Prechecks) {
	check := Check{Status: OK, Object: "Kubernetes version"}
	info, err := c.Discovery().ServerVersion()
	if err != nil {
		p.add(Check{Status: Failed, Object: check.Object, Message: err.Error()})
		return
	}
	check.Message = info.GitVersion
	chart, err := deploy.Chart(deploy.Istiod)
	if err == nil && chart.Metadata.KubeVersion != "" {
		want, errC := semver.NewConstraint(chart.Metadata.KubeVersion)
		have, errV := semver.NewVersion(info.GitVersion)
		if errC == nil && errV == nil && !want.Check(have) {
			check.Status, check.Code = Failed, "IST0142"
			check.Message = fmt.Sprintf("the Kubernetes version %s is not supported: weft %s needs %s", info.GitVersion, release.Version(), strings.TrimSuffix(chart.Metadata.KubeVersion, "-0"))
			check.Remedy = "upgrade the cluster first"
		}
	}
	p.add(check)
}

// checkPermissions asks whether we may write everything that the charts make.
func (c *Cluster) checkPermissions(ctx context.Context, p *Prechecks, plan *Plan) error {
	type right struct{ group, resource, namespace string }
	rights := map[right]bool{{"", "secrets", plan.Namespace}: true, {"", "namespaces", ""}: true, {"apiextensions.k8s.io", "customresourcedefinitions", ""}: true}
	text, err := plan.Render("")
	if err != nil {
		return err
	}
	objects, err := objectsOf(text, plan.Namespace)
	if err != nil {
		return err
	}
	for _, o := range objects {
		version, _ := o.tree["apiVersion"].(string)
		gv, err := schema.ParseGroupVersion(version)
		if err != nil {
			return err
		}
		mapping, err := c.mapper.RESTMapping(gv.WithKind(o.Kind).GroupKind(), gv.Version)
		if meta.IsNoMatchError(err) {
			p.add(Check{Status: Failed, Object: o.String(), Message: "the API server does not know " + version + " " + o.Kind, Remedy: "enable that API, or upgrade the cluster"})
			continue
		}
		if err != nil {
			return err
		}
		rights[right{gv.Group, mapping.Resource.Resource, o.Namespace}] = true
	}
	var missing []string
	for r := range rights {
		for _, verb := range []string{"create", "patch", "delete"} {
			answer, err := c.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
				ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: r.namespace, Verb: verb, Group: r.group, Resource: r.resource},
			}}, metav1.CreateOptions{})
			if err != nil {
				return fmt.Errorf("ask for permissions: %w", err)
			}
			if !answer.Status.Allowed {
				name := r.resource
				if r.group != "" {
					name += "." + r.group
				}
				if r.namespace != "" {
					name += " in " + r.namespace
				}
				missing = append(missing, verb+" "+name)
			}
		}
	}
	if len(missing) == 0 {
		p.add(Check{Status: OK, Object: "permissions", Message: fmt.Sprintf("%d kinds of objects may be written", len(rights))})
		return nil
	}
	slices.Sort(missing)
	p.add(Check{Status: Failed, Object: "permissions", Code: "IST0141", Message: "missing: " + strings.Join(missing, ", "),
		Remedy: "install as a cluster administrator, or let one grant these"})
	return nil
}

// definitions are the CRDs of the mesh's kinds in a cluster, by who has them.
type definitions struct {
	mine, loose []string
	foreign     map[string]string // name -> "Helm release istio-system/istio-base"
}

func (c *Cluster) definitions(ctx context.Context, namespace string) (definitions, error) {
	out := definitions{foreign: map[string]string{}}
	list, err := c.Dynamic.Resource(crdResource).List(ctx, metav1.ListOptions{})
	if err != nil {
		return out, fmt.Errorf("list CRDs: %w", c.unreachable(err))
	}
	type owner struct{ namespace, release string }
	whose := map[owner]string{}
	for _, crd := range list.Items {
		group, _ := get(crd.Object, "spec", "group")
		text, _ := group.(string)
		if !slices.Contains(meshGroups, text) || text == "install.istio.io" {
			continue
		}
		o := owner{crd.GetAnnotations()["meta.helm.sh/release-namespace"], crd.GetAnnotations()["meta.helm.sh/release-name"]}
		if o.release == "" {
			out.loose = append(out.loose, crd.GetName())
			continue
		}
		if _, known := whose[o]; !known {
			if whose[o], err = c.ownerOf(o.namespace, o.release, namespace); err != nil {
				return out, err
			}
		}
		switch whose[o] {
		case "":
			out.loose = append(out.loose, crd.GetName())
		case mine:
			out.mine = append(out.mine, crd.GetName())
		default:
			out.foreign[crd.GetName()] = whose[o]
		}
	}
	return out, nil
}

// mine is what ownerOf says of releases of the namespace that is meant.
const mine = "weft"

// ownerOf says who has what a Helm release made: mine, nobody (Helm keeps definitions of a release that is gone), or that release.
func (c *Cluster) ownerOf(in, release, namespace string) (string, error) {
	cfg, err := c.helmIn(in)
	if err != nil {
		return "", err
	}
	was, err := last(cfg, release)
	if err != nil && !apierrors.IsForbidden(err) {
		return "", c.unreachable(err)
	}
	switch {
	case err == nil && was == nil:
		return "", nil
	case err == nil && ours(was.Chart) && in == namespace:
		return mine, nil
	}
	return "Helm release " + in + "/" + release, nil
}

// checkDefinitions looks at mesh kinds that exist, and whose they are.
func checkDefinitions(p *Prechecks, plan *Plan, beside *neighbours) {
	defs := beside.definitions
	check := Check{Status: OK, Object: "definitions (CRDs)", Message: "none of the mesh's exist yet"}
	switch {
	case !plan.has(Base):
		check.Message = "not part of this installation"
	case beside.shared != "":
		check.Message = beside.shared
	case len(defs.loose) > 0:
		check.Message = fmt.Sprintf("%d exist that no Helm release has (made by istioctl or kubectl, or left by Istio's): they would be taken over; your objects stay as they are", len(defs.loose))
	case len(defs.mine) > 0:
		check.Message = fmt.Sprintf("%d exist and are ours", len(defs.mine))
	}
	p.add(check)
}

// checkControlPlanes looks at what is installed already, and at another mesh's parts.
func (c *Cluster) checkControlPlanes(ctx context.Context, p *Prechecks, plan *Plan) error {
	planes, err := c.Revisions(ctx, "")
	if err != nil {
		return err
	}
	if len(planes) == 0 {
		p.add(Check{Status: OK, Object: "control planes", Message: "none is installed"})
	}
	beside, err := c.settle(ctx, plan, Options{})
	if err != nil {
		return err
	}
	checkDefinitions(p, plan, beside)
	for _, r := range planes {
		if r.Foreign {
			p.add(foreignPlane(r, plan))
			continue
		}
		check := Check{Status: OK, Object: "control plane " + r.Namespace + "/" + r.Revision, Message: fmt.Sprintf("version %s, %s pods ready, %d proxies", r.Version, r.Ready, r.Proxies)}
		if suffix(r.Revision) == suffix(plan.Revision) && r.Namespace == plan.Namespace {
			if s := skew(r.Version, release.Version()); s != "" {
				check.Status, check.Message = Failed, s
			} else if r.Version != release.Version() {
				check.Message += "; would be upgraded to " + release.Version()
			}
		}
		p.add(check)
	}
	p.Checks = append(p.Checks, beside.conflicts...)
	for _, n := range beside.notes {
		p.add(Check{Status: OK, Object: "stays", Message: n})
	}
	if plan.has(CNI) && len(beside.agents) > 0 {
		p.add(Check{Status: Warning, Object: "node agent", Message: beside.agentNote()})
	}
	for _, ns := range beside.both {
		p.add(Check{Status: Warning, Object: "Namespace " + ns, Message: "has the labels istio-injection and istio.io/rev, which choose different control planes: the first wins",
			Remedy: "kubectl label namespace " + ns + " istio-injection-"})
	}
	return nil
}

// foreignPlane says what another mesh's control plane is used for, and how its users come to this one.
func foreignPlane(r Revision, plan *Plan) Check {
	check := Check{Status: OK, Object: "control plane " + r.Namespace + "/" + r.Revision, Message: fmt.Sprintf("another mesh's (%s), %s pods ready, %d proxies", r.Image, r.Ready, r.Proxies)}
	if len(r.Namespaces) > 0 {
		check.Message += ", in namespaces " + strings.Join(r.Namespaces, ", ")
	}
	if r.Namespace == plan.Namespace && plan.Revision != "" {
		check.Message += "; both would use the same certificate authority, so that their pods talk with mutual TLS"
		check.Remedy = "after the installation move namespaces one by one: kubectl label namespace NAME --overwrite istio-injection- istio.io/rev=" + plan.Revision + ", then restart its pods; back the same way"
	}
	return check
}

// checkWebhooks looks for injectors that would fail or fight.
func (c *Cluster) checkWebhooks(ctx context.Context, p *Prechecks, plan *Plan) error {
	hooks, err := c.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list webhooks: %w", err)
	}
	found := false
	for _, h := range hooks.Items {
		if h.Labels["app"] != "sidecar-injector" && !strings.Contains(h.Name, "sidecar-injector") {
			continue
		}
		found = true
		check := Check{Status: OK, Object: "injector " + h.Name}
		for _, w := range h.Webhooks {
			s := w.ClientConfig.Service
			if s == nil {
				continue
			}
			_, err := c.CoreV1().Services(s.Namespace).Get(ctx, s.Name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				check.Status, check.Code = Failed, "IST0139"
				check.Message = fmt.Sprintf("it calls service %s/%s, which does not exist: pods that it selects cannot be created", s.Namespace, s.Name)
				check.Remedy = "it was left behind by a mesh that is gone: kubectl delete mutatingwebhookconfiguration " + h.Name
				break
			}
		}
		if check.Status == OK && strings.Contains(h.Name, "linkerd") {
			check.Status, check.Message = Warning, "another mesh injects here; a pod must be in one mesh only"
		}
		p.add(check)
	}
	if !found {
		p.add(Check{Status: OK, Object: "injectors", Message: "none is installed"})
	}
	return nil
}

// checkNamespace looks at the control plane's namespace.
func (c *Cluster) checkNamespace(ctx context.Context, p *Prechecks, plan *Plan) error {
	check := Check{Status: OK, Object: "Namespace " + plan.Namespace, Message: "it will be made"}
	ns, err := c.CoreV1().Namespaces().Get(ctx, plan.Namespace, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
	case err != nil:
		return fmt.Errorf("read namespace %s: %w", plan.Namespace, err)
	case ns.DeletionTimestamp != nil:
		check.Status, check.Message, check.Remedy = Failed, "it is being deleted", "wait until it is gone"
	default:
		check.Message = "it exists"
		if level := ns.Labels["pod-security.kubernetes.io/enforce"]; level == "restricted" || level == "baseline" {
			check.Status, check.Message = Failed, "it enforces Pod Security "+level+", and the node agent needs host paths and two capabilities"
			check.Remedy = "kubectl label namespace " + plan.Namespace + " pod-security.kubernetes.io/enforce=privileged --overwrite"
		}
		policies, err := c.NetworkingV1().NetworkPolicies(plan.Namespace).List(ctx, metav1.ListOptions{})
		if err == nil {
			for _, np := range policies.Items {
				if len(np.Spec.PodSelector.MatchLabels)+len(np.Spec.PodSelector.MatchExpressions) == 0 && np.Labels["app.kubernetes.io/managed-by"] != "Helm" {
					check.Status, check.Message = Warning, "NetworkPolicy "+np.Name+" selects all pods there"
					check.Remedy = "let it admit TCP 15012 (proxies), 15017 (API server) and 15014 (metrics) to pods with the label app=istiod; --set values.global.networkPolicy.enabled=true makes such a policy"
				}
			}
		}
	}
	p.add(check)
	return nil
}

// checkNodes looks at whether each node can run meshed pods.
func (c *Cluster) checkNodes(ctx context.Context, p *Prechecks, _ *Plan) error {
	list, err := c.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if apierrors.IsForbidden(err) {
		p.add(Check{Status: Warning, Object: "nodes", Message: "they may not be read, so they were not looked at"})
		return nil
	}
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	if len(list.Items) == 0 {
		p.add(Check{Status: Failed, Object: "nodes", Message: "the cluster has none: nothing can run", Remedy: "add a node"})
		return nil
	}
	for _, n := range list.Items {
		info := n.Status.NodeInfo
		if info.OperatingSystem == string(corev1.Windows) {
			p.add(Check{Status: Warning, Object: "Node " + n.Name, Message: "runs Windows: its pods are not in the mesh"})
			continue
		}
		if a := info.Architecture; a != "" && a != "amd64" && a != "arm64" {
			p.add(Check{Status: Failed, Object: "Node " + n.Name, Message: "its architecture is " + a + ", and there are images for amd64 and arm64"})
		}
		if major, minor, ok := majorMinor(strings.TrimPrefix(info.KubeletVersion, "v")); ok && (major < 1 || major == 1 && minor < 29) {
			p.add(Check{Status: Failed, Object: "Node " + n.Name, Message: "its kubelet is " + info.KubeletVersion + ", which has no native sidecars: a meshed pod would wait for its proxy to end", Remedy: "upgrade it to 1.29 or newer"})
		}
		if major, minor, ok := majorMinor(info.KernelVersion); ok && (major < 4 || major == 4 && minor < 18) {
			p.add(Check{Status: Warning, Object: "Node " + n.Name, Message: "its kernel is " + info.KernelVersion + "; redirection was tried with 4.18 and newer"})
		}
		for _, t := range n.Spec.Taints {
			if t.Key == nodeTaint {
				p.add(Check{Status: OK, Object: "Node " + n.Name, Message: "waits for the node agent (taint " + nodeTaint + ")"})
			}
		}
		if !nodeReady(&n) {
			p.add(Check{Status: Warning, Object: "Node " + n.Name, Message: "it is not ready: " + notReadyBecause(&n)})
		}
	}
	p.add(Check{Status: OK, Object: fmt.Sprintf("nodes (%d)", len(list.Items))})
	return nil
}

func nodeReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(k corev1.NodeCondition) bool {
		return k.Type == corev1.NodeReady && k.Status == corev1.ConditionTrue
	})
}

func notReadyBecause(n *corev1.Node) string {
	for _, k := range n.Status.Conditions {
		if k.Type == corev1.NodeReady {
			return cmp.Or(k.Message, k.Reason)
		}
	}
	return "its kubelet has not reported"
}

// majorMinor reads "6.18.2-arch1".
func majorMinor(version string) (major, minor int, ok bool) {
	n, err := fmt.Sscanf(version, "%d.%d", &major, &minor)
	return major, minor, err == nil && n == 2
}

// checkNetwork knows the networks that need a setting before a mesh works on them.
func (c *Cluster) checkNetwork(ctx context.Context, p *Prechecks, _ *Plan) error {
	cilium, err := c.CoreV1().ConfigMaps("kube-system").Get(ctx, "cilium-config", metav1.GetOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read ConfigMap kube-system/cilium-config: %w", err)
	}
	set := cilium.Data
	if set["cni-exclusive"] != "false" {
		p.add(Check{Status: Failed, Object: "Cilium", Message: "cni-exclusive is on: Cilium removes other entries from the nodes' network configuration, the mesh's too",
			Remedy: "helm upgrade cilium ... --set cni.exclusive=false"})
	}
	if replaced := set["kube-proxy-replacement"]; (replaced == "true" || replaced == "strict") && set["bpf-lb-sock-hostns-only"] != "true" {
		p.add(Check{Status: Failed, Object: "Cilium", Message: "it replaces kube-proxy inside of pods too: connections would be sent past the sidecar",
			Remedy: "helm upgrade cilium ... --set socketLB.hostNamespaceOnly=true"})
	}
	return nil
}
