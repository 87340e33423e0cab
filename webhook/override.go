package webhook

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// A user overrides parts of the proxy by writing a container named istio-proxy into the pod: what it says wins over the
// template. When the webhook is called a second time (Kubernetes: reinvocationPolicy) that container holds the user's parts and
// ours, so the status annotation remembers which were the user's, by name only: their values are always those in the pod,
// and nothing in an annotation ever becomes part of it.

// status is the annotation sidecar.istio.io/status. The first five fields are Istio's.
type status struct {
	InitContainers   []string `json:"initContainers"`
	Containers       []string `json:"containers"`
	Volumes          []string `json:"volumes"`
	ImagePullSecrets []string `json:"imagePullSecrets"`
	Revision         string   `json:"revision"`
	Templates        []string `json:"templates"`
	Overrides        []string `json:"overrides,omitempty"` // fields of istio-proxy that are the user's: "resources", "env[DEBUG]"
}

func (s status) encode() (string, error) {
	b, err := json.Marshal(s)
	return string(b), err
}

// readStatus returns ok=false for a pod that was not injected before. A status annotation without the container was copied from another
// pod's YAML and says nothing about this one.
func readStatus(pod *corev1.Pod) (s status, ok bool, err error) {
	text, found := pod.Annotations[annotationStatus]
	if !found || findProxy(pod) == nil {
		return status{}, false, nil
	}
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return status{}, false, annotationError(annotationStatus, text, fmt.Errorf("this annotation is written by the injector; remove it, and the container %s", ProxyName))
	}
	if len(s.Templates) == 0 {
		return status{}, false, fmt.Errorf("the pod carries a proxy that Istio injected (annotation %s, container %s); apply it as it was before, without istioctl kube-inject", annotationStatus, ProxyName)
	}
	return s, true, nil
}

// findProxy returns the container named istio-proxy wherever it is, or nil.
func findProxy(pod *corev1.Pod) *corev1.Container {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		if i := indexOf(list, ProxyName); i >= 0 {
			return &list[i]
		}
	}
	return nil
}

func indexOf(list []corev1.Container, name string) int {
	return slices.IndexFunc(list, func(c corev1.Container) bool { return c.Name == name })
}

// overrideOf is what the user says about the proxy: the whole container at first, and only the remembered fields later.
func overrideOf(c *corev1.Container, before *status) corev1.Container {
	if c == nil {
		return corev1.Container{Name: ProxyName}
	}
	o := *c.DeepCopy()
	if o.Image == "auto" {
		o.Image = "" // Istio: the template's image
		// The API server takes the missing tag for "latest" and has written its default for that, before it asked us.
		if o.ImagePullPolicy == corev1.PullAlways {
			o.ImagePullPolicy = ""
		}
	}
	if before != nil {
		o = only(o, before.Overrides)
	}
	return o
}

// containerLists are the fields of a container that are merged by key; a user may own some of the elements.
var containerLists = map[string]string{"env": "Name", "volumeMounts": "MountPath", "ports": "ContainerPort"}

// fieldNames lists the user's fields, in the order of the type.
func fieldNames(c *corev1.Container) []string {
	var names []string
	v := reflect.ValueOf(c).Elem()
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		if name == "name" || v.Field(i).IsZero() {
			continue
		}
		key, keyed := containerLists[name]
		if !keyed {
			names = append(names, name)
			continue
		}
		for j := range v.Field(i).Len() {
			names = append(names, name+"["+keyText(v.Field(i).Index(j).FieldByName(key))+"]")
		}
	}
	return names
}

// only empties every field that is not named.
func only(c corev1.Container, names []string) corev1.Container {
	out := corev1.Container{Name: c.Name}
	from, to := reflect.ValueOf(&c).Elem(), reflect.ValueOf(&out).Elem()
	for i := range from.NumField() {
		name, _, _ := strings.Cut(from.Type().Field(i).Tag.Get("json"), ",")
		key, keyed := containerLists[name]
		if !keyed {
			if slices.Contains(names, name) {
				to.Field(i).Set(from.Field(i))
			}
			continue
		}
		for j := range from.Field(i).Len() {
			el := from.Field(i).Index(j)
			if slices.Contains(names, name+"["+keyText(el.FieldByName(key))+"]") {
				to.Field(i).Set(reflect.Append(to.Field(i), el))
			}
		}
	}
	return out
}

func keyText(v reflect.Value) string {
	if v.CanInt() {
		return strconv.FormatInt(v.Int(), 10)
	}
	return v.String()
}

func envValue(c *corev1.Container, name string) string {
	if c == nil {
		return ""
	}
	for _, e := range c.Env {
		if e.Name == name {
			return e.Value
		}
	}
	return ""
}
