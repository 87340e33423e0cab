package webhook

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/weft-mesh/weft/redirect"
	"github.com/weft-mesh/weft/templates"
)

const (
	templateSidecar = "sidecar"
	templateGateway = "gateway"
)

// Injector decides and injects. It is immutable but for a bounded cache, and safe for concurrent use.
type Injector struct {
	o             Options
	never, always []labels.Selector
	templates     map[string]*templates.Template
	pullSecrets   []corev1.LocalObjectReference
	bootstraps    prepared
}

// NewInjector checks the options and prepares the templates. The error names the option or template, and the line in it.
func NewInjector(o Options) (*Injector, error) {
	in := &Injector{o: o.withDefaults(), templates: map[string]*templates.Template{}}
	if err := in.o.validate(); err != nil {
		return nil, err
	}
	for _, x := range []struct {
		name string
		from []metav1.LabelSelector
		to   *[]labels.Selector
	}{{"neverInject", o.NeverInject, &in.never}, {"alwaysInject", o.AlwaysInject, &in.always}} {
		for i := range x.from {
			s, err := metav1.LabelSelectorAsSelector(&x.from[i])
			if err != nil {
				return nil, fmt.Errorf("%s[%d]: %w", x.name, i, err)
			}
			// Istio: an empty selector selects nothing here.
			if !s.Empty() {
				*x.to = append(*x.to, s)
			}
		}
	}
	texts := map[string][]byte{templateSidecar: templates.Sidecar, templateGateway: templates.Gateway}
	maps.Copy(texts, o.Templates)
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		t, err := templates.Parse(name, texts[name], func(v string) bool { return valueNames[v] })
		if err != nil {
			return nil, err
		}
		in.templates[name] = t
	}
	for _, name := range in.o.DefaultTemplates {
		if in.templates[name] == nil {
			return nil, fmt.Errorf("default template %q does not exist, there are %s", name, in.templateNames())
		}
	}
	for _, s := range in.o.ImagePullSecrets {
		in.pullSecrets = append(in.pullSecrets, corev1.LocalObjectReference{Name: s})
	}
	return in, nil
}

func (in *Injector) templateNames() string {
	return strings.Join(slices.Sorted(maps.Keys(in.templates)), ", ")
}

// Inject returns a copy of the pod with its proxy, and warnings for the user. It does not decide: see Decide. Injecting the
// result again gives the same pod, also when other webhooks have changed it in between. Errors are for the pod's author: they
// name the annotation, container or field, its value, and the remedy; several are reported together.
func (in *Injector) Inject(pod *corev1.Pod, namespace string, mesh *meshconfig.MeshConfig) (*corev1.Pod, []string, error) {
	return in.injectAs(pod, namespace, mesh, ownerOf(pod))
}

func (in *Injector) injectAs(pod *corev1.Pod, namespace string, mesh *meshconfig.MeshConfig, o owner) (*corev1.Pod, []string, error) {
	j := &injection{in: in, pod: pod.DeepCopy(), namespace: namespace, mesh: mesh, owner: o}
	before, again, err := readStatus(j.pod)
	if err != nil {
		return nil, nil, err
	}
	if again {
		j.before = &before
	}
	user, warnings, err := parseAnnotations(j.pod.Annotations)
	if err != nil {
		return nil, nil, err
	}
	j.user, j.warnings = user, warnings
	j.override = overrideOf(findProxy(j.pod), j.before)
	pc, warnings, err := proxyConfig(mesh.GetDefaultConfig(), j.pod.Annotations)
	if err != nil {
		return nil, nil, err
	}
	j.pc = pc
	j.warnings = append(j.warnings, warnings...)
	j.canonical[0], j.canonical[1] = canonical(j.pod, j.owner)
	if j.metrics, err = j.mergeMetrics(); err != nil {
		return nil, nil, err
	}
	settings, err := in.bootstrapSettings(j.pc, &j.user)
	if err != nil {
		return nil, nil, err
	}
	if j.bootstrap, err = in.bootstraps.get(settings); err != nil {
		return nil, nil, err
	}
	if err := j.apply(); err != nil {
		return nil, nil, err
	}
	return j.pod, j.warnings, nil
}

// apply evaluates the templates and merges: the user's pod, each template over it, the user's istio-proxy over that.
func (j *injection) apply() error {
	names, err := j.in.selected(j.pod)
	if err != nil {
		return err
	}
	values, err := j.values()
	if err != nil {
		return err
	}
	overlays := make([]*corev1.Pod, len(names))
	st := status{Revision: j.in.o.Revision, Templates: names}
	native, main := false, false
	for i, name := range names {
		if overlays[i], err = j.in.templates[name].Build(values); err != nil {
			return err
		}
		spec := &overlays[i].Spec
		native = native || indexOf(spec.InitContainers, ProxyName) >= 0
		main = main || indexOf(spec.Containers, ProxyName) >= 0
		for _, c := range spec.InitContainers {
			st.InitContainers = append(st.InitContainers, c.Name)
		}
		for _, c := range spec.Containers {
			st.Containers = append(st.Containers, c.Name)
		}
		for _, v := range spec.Volumes {
			st.Volumes = append(st.Volumes, v.Name)
		}
		for _, s := range spec.ImagePullSecrets {
			st.ImagePullSecrets = append(st.ImagePullSecrets, s.Name)
		}
	}
	if j.gated == "" && j.user.startGate == GateHook {
		j.warnings = append(j.warnings, fmt.Sprintf("annotation %s: hook has no effect: no container of this pod waits for the proxy", annStartGate))
	}
	if native && main {
		return annotationError(annotationTemplates, strings.Join(names, ","), fmt.Errorf("these templates add %s both as sidecar and as main container; choose one", ProxyName))
	}
	if j.before != nil {
		st.Overrides = j.before.Overrides
	} else {
		st.Overrides = fieldNames(&j.override)
	}
	if native || main {
		if err := j.makeRoom(native); err != nil {
			return err
		}
	}
	// Ours alone: one that a user copied from another pod would redirect a pod whose templates do not ask for it.
	delete(j.pod.Annotations, redirect.Annotation)
	for _, s := range j.sites {
		s.rewrite()
	}
	for _, o := range overlays {
		templates.Merge(j.pod, o)
	}
	if native || main {
		templates.MergeContainer(findProxy(j.pod), &j.override)
	}
	j.warnProxyUser()
	text, err := st.encode()
	if err != nil {
		return err
	}
	if j.pod.Annotations == nil {
		j.pod.Annotations = map[string]string{}
	}
	j.pod.Annotations[annotationStatus] = text
	return nil
}

// selected is which templates the pod wants.
func (in *Injector) selected(pod *corev1.Pod) ([]string, error) {
	text, ok := pod.Annotations[annotationTemplates]
	if !ok {
		return in.o.DefaultTemplates, nil
	}
	names := commaList(text)
	if len(names) == 0 {
		return nil, annotationError(annotationTemplates, text, fmt.Errorf("want names of templates with commas between them, out of %s", in.templateNames()))
	}
	for i, name := range names {
		if in.templates[name] == nil {
			return nil, annotationError(annotationTemplates, text, fmt.Errorf("there is no template %q, only %s", name, in.templateNames()))
		}
		if slices.Contains(names[:i], name) {
			return nil, annotationError(annotationTemplates, text, fmt.Errorf("%q stands there twice", name))
		}
	}
	return names, nil
}

// makeRoom leaves an empty container where the proxy's will be merged in: the first of the init containers, so that the
// network is there for the others too, or, for a gateway, where the user's istio-proxy stands.
func (j *injection) makeRoom(native bool) error {
	spec := &j.pod.Spec
	stub := corev1.Container{Name: ProxyName}
	isProxy := func(c corev1.Container) bool { return c.Name == ProxyName }
	if !native {
		spec.InitContainers = slices.DeleteFunc(spec.InitContainers, isProxy)
		if i := indexOf(spec.Containers, ProxyName); i >= 0 {
			spec.Containers[i] = stub
		} else {
			spec.Containers = append(spec.Containers, stub)
		}
		return nil
	}
	spec.Containers = slices.DeleteFunc(spec.Containers, isProxy)
	if len(spec.Containers) == 0 {
		return fmt.Errorf("the pod has no container but %s; a gateway needs the annotation %s: %s", ProxyName, annotationTemplates, templateGateway)
	}
	spec.InitContainers = slices.DeleteFunc(spec.InitContainers, isProxy)
	spec.InitContainers = slices.Insert(spec.InitContainers, 0, stub)
	return nil
}

// warnProxyUser: what runs as the proxy's user is never captured, and rarely meant to be so.
func (j *injection) warnProxyUser() {
	if !j.captured || j.spec.Mode != redirect.Redirect {
		return
	}
	uses := func(id *int64) bool { return id != nil && slices.Contains(j.spec.ProxyUIDs, uint32(*id)) }
	var podUser *int64
	if sc := j.pod.Spec.SecurityContext; sc != nil {
		podUser = sc.RunAsUser
	}
	for i := range j.pod.Spec.Containers {
		c := &j.pod.Spec.Containers[i]
		id := podUser
		if c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil {
			id = c.SecurityContext.RunAsUser
		}
		if c.Name != ProxyName && uses(id) {
			j.warnings = append(j.warnings, fmt.Sprintf("container %s runs as user %d, which is the proxy's: its outbound traffic is not captured; choose another runAsUser", c.Name, *id))
		}
	}
}

func sortedKeys[V any](m map[string]V) []string {
	if len(m) == 0 {
		return nil
	}
	return slices.Sorted(maps.Keys(m))
}
