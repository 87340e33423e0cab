package install

import (
	"context"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	helm "helm.sh/helm/v4/pkg/release/v1"
)

// Status of a check.
type Status string

// What a check may say.
const (
	OK      Status = "ok"
	Warning Status = "warning"
	Failed  Status = "error"
)

// Check is one thing that was looked at.
type Check struct {
	Status  Status `json:"status"`
	Object  string `json:"object"`            // "Deployment istio-system/istiod"
	Code    string `json:"code,omitempty"`    // istioctl's, where it has one
	Message string `json:"message,omitempty"` // what is wrong
	Remedy  string `json:"remedy,omitempty"`  // what to do
}

// Verification is what verify-install found.
type Verification struct {
	Namespace string  `json:"namespace"`
	Revision  string  `json:"revision"`
	Checks    []Check `json:"checks"`
}

// Problems counts the checks that failed.
func (v *Verification) Problems() int {
	n := 0
	for _, c := range v.Checks {
		if c.Status == Failed {
			n++
		}
	}
	return n
}

func (v *Verification) add(c Check) { v.Checks = append(v.Checks, c) }

// Verify compares the cluster with what was installed: each object of the releases' manifests is there, as it was made, and
// ready; the webhooks trust the control plane; a pod would be injected; nodes take meshed pods.
func (c *Cluster) Verify(ctx context.Context, namespace, revision string) (*Verification, error) {
	if err := c.Reachable(); err != nil {
		return nil, err
	}
	v := &Verification{Namespace: namespace, Revision: revision}
	if v.Revision == "" {
		v.Revision = "default"
	}
	releases, err := c.installed(ctx, namespace, revision)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(releases, func(r *helm.Release) bool { return r.Chart.Metadata.Name == "istiod" }) {
		v.add(Check{Status: Failed, Object: "revision " + v.Revision, Message: "no control plane of this revision is installed in namespace " + namespace + c.elsewhere(ctx, namespace, revision),
			Remedy: "weft install, or name it with --revision and --istioNamespace"})
	}
	for _, rel := range releases {
		if !rel.Info.Status.IsPending() && rel.Info.Status != "deployed" {
			v.add(Check{Status: Failed, Object: "Helm release " + rel.Name, Message: string(rel.Info.Status) + ": " + rel.Info.Description, Remedy: "run weft install again"})
		}
		if rel.Info.Status.IsPending() {
			v.add(Check{Status: Failed, Object: "Helm release " + rel.Name, Message: "an installation is under way or was interrupted", Remedy: "wait, or run weft install again"})
		}
		if err := c.verifyRelease(ctx, v, rel); err != nil {
			return nil, err
		}
	}
	for _, more := range []func(context.Context, *Verification, []*helm.Release){c.verifyNodes, c.verifyAuthority, c.verifyInjection} {
		more(ctx, v, releases)
	}
	return v, nil
}

// installed are the newest versions of the releases of a control plane: those of its revision and those that all share.
func (c *Cluster) installed(ctx context.Context, namespace, revision string) ([]*helm.Release, error) {
	all, err := c.releases(ctx, namespace)
	if err != nil {
		return nil, err
	}
	var out []*helm.Release
	for _, r := range all {
		of, _ := r.Config["revision"].(string)
		switch r.Chart.Metadata.Name {
		case "base", "cni":
			out = append(out, r)
		case "istiod", "gateway":
			if suffix(of) == suffix(revision) {
				out = append(out, r)
			}
		}
	}
	return out, nil
}

// releases are the newest versions of all releases of our charts, in every namespace, those of the control plane's namespace first.
func (c *Cluster) releases(ctx context.Context, namespace string) ([]*helm.Release, error) {
	cfg, err := c.helmIn("") // all namespaces
	if err != nil {
		return nil, err
	}
	list, err := cfg.Releases.ListReleases()
	if apierrors.IsForbidden(err) { // who may only read the control plane's namespace sees what is there
		if cfg, err = c.helmIn(namespace); err != nil {
			return nil, err
		}
		list, err = cfg.Releases.ListReleases()
	}
	if err != nil {
		return nil, fmt.Errorf("list Helm releases: %w", c.unreachable(err))
	}
	newest := map[string]*helm.Release{}
	for _, v := range list {
		r, ok := v.(*helm.Release)
		if !ok || !ours(r.Chart) || r.Info == nil || r.Info.Status == "uninstalled" {
			continue
		}
		if r.Chart.Metadata.Name != "gateway" && r.Namespace != namespace {
			continue
		}
		key := r.Namespace + "/" + r.Name
		if was := newest[key]; was == nil || was.Version < r.Version {
			newest[key] = r
		}
	}
	var out []*helm.Release
	for _, r := range newest {
		out = append(out, r)
	}
	rank := func(r *helm.Release) int {
		return slices.Index([]string{"base", "istiod", "cni", "gateway"}, r.Chart.Metadata.Name)
	}
	slices.SortFunc(out, func(a, b *helm.Release) int {
		if d := rank(a) - rank(b); d != 0 {
			return d
		}
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	return out, nil
}

// elsewhere names the control planes that there are.
func (c *Cluster) elsewhere(ctx context.Context, namespace, revision string) string {
	all, err := c.Revisions(ctx, "")
	if err != nil {
		return ""
	}
	var have []string
	for _, r := range all {
		switch {
		case r.Foreign:
			have = append(have, r.Revision+" in "+r.Namespace+" of another mesh")
		case r.Namespace != namespace || suffix(r.Revision) != suffix(revision):
			have = append(have, r.Revision+" in "+r.Namespace)
		}
	}
	if len(have) == 0 {
		return ""
	}
	return " (there is revision " + strings.Join(have, ", ") + ")"
}

// verifyRelease looks at each object of a manifest.
func (c *Cluster) verifyRelease(ctx context.Context, v *Verification, rel *helm.Release) error {
	trees, err := readObjects([]byte(rel.Manifest))
	if err != nil {
		return err
	}
	objects, err := objectsOf(rel.Manifest, rel.Namespace)
	if err != nil {
		return err
	}
	for i, o := range objects {
		check := Check{Status: OK, Object: o.String()}
		live, err := c.get(ctx, trees[i], rel.Namespace)
		switch {
		case meta.IsNoMatchError(err):
			check.Status, check.Message = Failed, fmt.Sprintf("the API server does not know the kind %v %s", trees[i]["apiVersion"], o.Kind)
			check.Remedy = "weft install puts the definition back; nothing else of yours is changed"
		case apierrors.IsNotFound(err):
			check.Status, check.Message = Failed, "it does not exist"
			check.Remedy = "weft install (or helm upgrade " + rel.Name + ") makes it again"
			if o.Kind == "CustomResourceDefinition" {
				check.Message += ": objects of this kind cannot be read, so the control plane ignores them"
			}
		case err != nil:
			check.Status, check.Message = Failed, err.Error()
		default:
			if changed := differences(trees[i], live, ""); len(changed) > 0 {
				check.Status, check.Message = Warning, "changed since it was installed: "+strings.Join(changed[:min(3, len(changed))], "; ")
				if len(changed) > 3 {
					check.Message += fmt.Sprintf("; and %d more", len(changed)-3)
				}
				check.Remedy = "put the setting into your IstioOperator file, or let weft install put it back"
			}
			u, err := c.stateOf(ctx, o)
			if err == nil && u.why != "" {
				check.Status, check.Message = Failed, u.why
				check.Remedy = "see below"
				if u.pods != nil {
					for _, line := range c.podTroubles(ctx, u) {
						check.Message += "\n" + line
					}
					check.Remedy = ""
				}
			}
		}
		v.add(check)
	}
	return nil
}

// get reads the live counterpart of a manifest's object.
func (c *Cluster) get(ctx context.Context, t Tree, namespace string) (Tree, error) {
	from, err := c.resourceOf(t, namespace)
	if err != nil {
		return nil, err
	}
	name, _ := get(t, "metadata", "name")
	text, _ := name.(string)
	u, err := from.Get(ctx, text, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return u.Object, nil
}

// resourceOf is where objects like this one are; namespace is of those that name none.
func (c *Cluster) resourceOf(t Tree, namespace string) (dynamic.ResourceInterface, error) {
	version, _ := t["apiVersion"].(string)
	kind, _ := t["kind"].(string)
	gv, err := schema.ParseGroupVersion(version)
	if err != nil {
		return nil, err
	}
	mapping, err := c.mapper.RESTMapping(gv.WithKind(kind).GroupKind(), gv.Version)
	if err != nil {
		return nil, err
	}
	if mapping.Scope.Name() != meta.RESTScopeNameNamespace {
		return c.Dynamic.Resource(mapping.Resource), nil
	}
	if ns, ok := get(t, "metadata", "namespace"); ok {
		namespace, _ = ns.(string)
	}
	return c.Dynamic.Resource(mapping.Resource).Namespace(namespace), nil
}
