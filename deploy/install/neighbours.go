package install

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Another mesh in the cluster, Istio above all: what it has stays its own, and what both need is shared. That makes weft a revision
// beside Istio's, and namespaces move one by one, as in a canary upgrade of Istio.

// partOf is the label that tells our workloads from Istio's, which have the same names.
const partOf = "app.kubernetes.io/part-of"

// besideNames are releases of ours where another mesh has the usual ones.
var besideNames = map[string]string{"istio-base": "weft-base", "istio-cni": "weft-cni"}

// neighbours is what of other meshes is in a cluster, in the way of a plan or not.
type neighbours struct {
	planes      []Revision // control planes
	definitions definitions
	agents      []string // node agents, "istio-system/istio-cni-node"
	conflicts   []Check  // what makes the plan impossible
	shared      string   // definitions that another mesh keeps
	notes       []string // what else stays with another mesh or revision
	both        []string // namespaces whose two labels choose two meshes
}

// settle looks at other meshes and fits the plan in beside them: it leaves out what is theirs, and renames what is taken. It may be called
// for the same plan again.
func (c *Cluster) settle(ctx context.Context, p *Plan, o Options) (*neighbours, error) {
	n := &neighbours{}
	all, err := c.Revisions(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		if r.Foreign {
			n.planes = append(n.planes, r)
		}
	}
	if n.definitions, err = c.definitions(ctx, p.Namespace); err != nil {
		return nil, err
	}
	if err := c.nodeAgents(ctx, n); err != nil {
		return nil, err
	}
	for _, r := range n.planes {
		if err := c.judge(ctx, n, p, r); err != nil {
			return nil, err
		}
	}
	if err := c.labelledTwice(ctx, n, all); err != nil {
		return nil, err
	}
	for i := range p.Releases {
		r := &p.Releases[i]
		if err := c.rename(r); err != nil {
			return nil, err
		}
		if r.Component == Base {
			if err := c.settleBase(ctx, n, p, r, all); err != nil {
				return nil, err
			}
		}
	}
	return n, c.keepGateways(ctx, n, p, o)
}

// judge says whether a plan can stand beside a control plane.
func (c *Cluster) judge(ctx context.Context, n *neighbours, p *Plan, r Revision) error {
	if !p.has(Pilot) {
		return nil
	}
	object := "Deployment " + r.Namespace + "/istiod" + suffix(r.Revision)
	switch {
	case r.Namespace == p.Namespace && suffix(r.Revision) == suffix(p.Revision):
		n.conflicts = append(n.conflicts, Check{Status: Failed, Object: object, Message: "another mesh's control plane (" + r.Image + ") has this namespace and revision, and is not overwritten",
			Remedy: "install weft beside it as a revision, weft install --revision weft, and move namespaces one by one (docs/install.md, From Istio)"})
	case r.Namespace != p.Namespace:
		same, err := c.sameAuthority(ctx, r.Namespace, p.Namespace)
		if err != nil || same {
			return err
		}
		n.conflicts = append(n.conflicts, Check{Status: Failed, Object: object, Message: "another mesh's control plane has a certificate authority of its own there: both meshes would write their root into ConfigMap istio-ca-root-cert of every namespace, " +
			"and their pods could not talk with mutual TLS",
			Remedy: "install into its namespace, where both use the same Secret, weft install --revision weft --istioNamespace " + r.Namespace + "; or give both namespaces the same Secret cacerts first"})
	}
	return nil
}

// sameAuthority says whether two namespaces were given the same certificate authority. Without a Secret cacerts each control plane makes its own.
func (c *Cluster) sameAuthority(ctx context.Context, a, b string) (bool, error) {
	var roots [2][]byte
	for i, ns := range []string{a, b} {
		s, err := c.CoreV1().Secrets(ns).Get(ctx, "cacerts", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("read Secret %s/cacerts: %w", ns, c.unreachable(err))
		}
		roots[i] = bytes.TrimSpace(s.Data["root-cert.pem"])
	}
	return len(roots[0]) > 0 && bytes.Equal(roots[0], roots[1]), nil
}

// nodeAgents finds node agents of another mesh.
func (c *Cluster) nodeAgents(ctx context.Context, n *neighbours) error {
	list, err := c.AppsV1().DaemonSets("").List(ctx, metav1.ListOptions{LabelSelector: partOf + "!=weft"})
	if err != nil {
		return fmt.Errorf("list node agents: %w", c.unreachable(err))
	}
	for _, d := range list.Items {
		if isNodeAgent(&d) {
			n.agents = append(n.agents, d.Namespace+"/"+d.Name)
		}
	}
	return nil
}

// isNodeAgent: Istio's charts and istioctl give the DaemonSet any name, but its pods this label.
func isNodeAgent(d *appsv1.DaemonSet) bool {
	return d.Spec.Template.Labels["k8s-app"] == "istio-cni-node"
}

// labelledTwice finds namespaces with both labels: istio-injection wins, which surprises who moves them by istio.io/rev.
func (c *Cluster) labelledTwice(ctx context.Context, n *neighbours, all []Revision) error {
	list, err := c.CoreV1().Namespaces().List(ctx, metav1.ListOptions{LabelSelector: "istio-injection=enabled," + revisionLabel})
	if err != nil {
		return fmt.Errorf("list namespaces: %w", c.unreachable(err))
	}
	for _, ns := range list.Items {
		rev := ns.Labels[revisionLabel]
		means := func(r Revision) bool { return r.Revision == rev || slices.Contains(r.Tags, rev) }
		if i := slices.IndexFunc(all, means); i >= 0 && !slices.Contains(all[i].Namespaces, ns.Name) {
			n.both = append(n.both, ns.Name)
		}
	}
	return nil
}

// rename gives a release the name that it has beside another mesh, once that mesh has the usual one.
func (c *Cluster) rename(r *Release) error {
	beside, ok := besideNames[r.Name]
	if !ok {
		return nil
	}
	usual, err := c.release(r.Namespace, r.Name)
	if err != nil {
		return err
	}
	renamed, err := c.release(r.Namespace, beside)
	if err != nil {
		return err
	}
	if usual != nil && !ours(usual.Chart) || renamed != nil && ours(renamed.Chart) {
		r.Name = beside
	}
	return nil
}

// settleBase leaves out definitions that another mesh has, and its check of objects; and points ours at a control plane that is there.
func (c *Cluster) settleBase(ctx context.Context, n *neighbours, p *Plan, r *Release, all []Revision) error {
	shared := maps.Clone(n.definitions.foreign)
	if len(n.planes) > 0 { // istioctl's definitions have no owner; while an Istio runs they are its
		for _, name := range n.definitions.loose {
			shared[name] = "istioctl or kubectl"
		}
	}
	r.Values = asTree(clone(r.Values)) // not the input's
	if len(shared) > 0 {
		excluded, _ := get(r.Values, "base", "excludedCRDs")
		list, _ := excluded.([]any)
		for _, name := range slices.Sorted(maps.Keys(shared)) {
			if !slices.Contains(list, any(name)) {
				list = append(list, name)
			}
		}
		put(r.Values, list, "base", "excludedCRDs")
		n.shared = fmt.Sprintf("%d definitions (CRDs) stay with %s, and are upgraded there; both meshes use them", len(shared), strings.Join(owners(shared), ", "))
	}
	hook, err := c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, "istiod-default-validator", metav1.GetOptions{})
	switch {
	case err != nil && !apierrors.IsNotFound(err):
		return fmt.Errorf("read webhook istiod-default-validator: %w", c.unreachable(err))
	case err == nil && hook.Labels[partOf] != "weft" && len(n.planes) > 0:
		put(r.Values, "", "defaultRevision")
		n.notes = append(n.notes, "mesh objects without the label istio.io/rev go on being checked by the other mesh")
		return nil
	}
	if _, said := r.Values["defaultRevision"]; !said {
		return c.defaultRevision(p, r, all)
	}
	return nil
}

// owners lists who has definitions, each once.
func owners(of map[string]string) []string {
	return slices.Compact(slices.Sorted(maps.Values(of)))
}

// defaultRevision keeps the choice of who checks objects that name no revision, unless that control plane is not there: then it is this plan's.
func (c *Cluster) defaultRevision(p *Plan, r *Release, all []Revision) error {
	if !p.has(Pilot) {
		return nil
	}
	was, err := c.release(r.Namespace, r.Name)
	if err != nil {
		return err
	}
	choice := "default"
	if was != nil {
		if v, ok := was.Config["defaultRevision"].(string); ok && v != "" {
			choice = v
		}
	}
	there := func(q Revision) bool { return !q.Foreign && q.Namespace == p.Namespace && q.Revision == choice }
	if choice != p.Revisioned() && !slices.ContainsFunc(all, there) {
		choice = p.Revisioned()
	}
	if choice != "default" {
		put(r.Values, choice, "defaultRevision")
	}
	return nil
}

// keepGateways takes gateways out of the plan that another mesh has; and those that another revision has, unless the user names them or
// asks for it: a second control plane must not take the traffic of the first.
func (c *Cluster) keepGateways(ctx context.Context, n *neighbours, p *Plan, o Options) error {
	var stay []Release
	for _, r := range p.Releases {
		if r.Chart != "gateway" {
			stay = append(stay, r)
			continue
		}
		foreign, err := c.foreignGateway(ctx, r)
		if err != nil {
			return err
		}
		if foreign != "" {
			n.notes = append(n.notes, fmt.Sprintf("gateway %s/%s stays with another mesh (%s); weft's own needs another name: --set components.%s[0].name=weft-gateway", r.Namespace, r.Name, foreign, listOf(r.Component)))
			continue
		}
		was, err := c.release(r.Namespace, r.Name)
		if err != nil {
			return err
		}
		if o.MoveGateways || p.named[r.Name] || was == nil {
			stay = append(stay, r)
			continue
		}
		revision, _ := was.Config["revision"].(string)
		if suffix(revision) == suffix(p.Revision) {
			stay = append(stay, r)
			continue
		}
		n.notes = append(n.notes, fmt.Sprintf("gateway %s stays with revision %s; move it with --move-gateways when the new control plane has proven itself", r.Name, cmp.Or(revision, "default")))
	}
	p.Releases = stay
	return nil
}

// listOf is the list of IstioOperator that a gateway's component stands in.
func listOf(component string) string {
	if component == Egress {
		return "egressGateways"
	}
	return "ingressGateways"
}

// foreignGateway says whose a gateway's workload is; empty when there is none, or it is ours.
func (c *Cluster) foreignGateway(ctx context.Context, r Release) (string, error) {
	d, err := c.AppsV1().Deployments(r.Namespace).Get(ctx, r.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read Deployment %s/%s: %w", r.Namespace, r.Name, c.unreachable(err))
	}
	if d.Labels[partOf] == "weft" {
		return "", nil
	}
	if owner := d.Annotations["meta.helm.sh/release-name"]; owner != "" {
		return "Helm release " + owner, nil
	}
	return "istioctl or kubectl", nil
}

// stays lists what is left alone.
func (n *neighbours) stays(p *Plan) []string {
	var out []string
	if n.shared != "" {
		out = append(out, n.shared)
	}
	out = append(out, n.notes...)
	if p.has(CNI) && len(n.agents) > 0 {
		out = append(out, "node agent "+n.agentNote())
	}
	return out
}

// refuse is the error of a plan that cannot be.
func (n *neighbours) refuse() error {
	if len(n.conflicts) == 0 {
		return nil
	}
	var text []string
	for _, k := range n.conflicts {
		text = append(text, k.Object+": "+k.Message+"; "+k.Remedy)
	}
	return fmt.Errorf("%s", strings.Join(text, "\n"))
}

// agentNote says what another mesh's node agent does with pods of ours (Istio: cni/pkg/plugin/plugin.go, doAddRun).
func (n *neighbours) agentNote() string {
	return strings.Join(n.agents, ", ") + " redirects pods of both meshes, ours a second time and the same way; that costs little and was not tried by us. Take the namespaces that have moved out of it (Istio's chart cni: excludeNamespaces)"
}

// ownedByOther says that a pod is of another controller with the same labels: Istio's node agents have ours.
func ownedByOther(pod *corev1.Pod, kind, name string) bool {
	owner := metav1.GetControllerOf(pod)
	return owner != nil && owner.Kind == kind && owner.Name != name
}
