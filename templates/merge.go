package templates

import (
	"reflect"

	corev1 "k8s.io/api/core/v1"
)

// Merge applies overlay to pod by the rules of a strategic merge patch (Kubernetes API conventions): fields of the overlay win,
// maps are merged by key, lists by their merge key (containers by name, mounts by path) when they have one, and replaced
// otherwise. New elements go to the end: the user's containers stay the first. What is zero in the overlay is not there. The outcome is that of
// strategicpatch.StrategicMergePatch on the JSON of both (a test holds them together), at a small part of its cost, and
// without dropping the difference between an empty and an absent list of the pod.
//
// One rule is added: of several members of a union (a probe's handlers, a volume's sources, an environment variable's
// value and valueFrom) only the overlay's remains, since Kubernetes never accepts two.
//
// pod may afterwards share memory with overlay.
func Merge(pod, overlay *corev1.Pod) {
	mergeStruct(reflect.ValueOf(pod).Elem(), reflect.ValueOf(overlay).Elem())
}

// MergeContainer is Merge for one container.
func MergeContainer(container, overlay *corev1.Container) {
	mergeStruct(reflect.ValueOf(container).Elem(), reflect.ValueOf(overlay).Elem())
}

// unions are the types of which at most one member may be set.
var unions = map[reflect.Type]bool{
	reflect.TypeFor[corev1.ProbeHandler]():     true,
	reflect.TypeFor[corev1.LifecycleHandler](): true,
	reflect.TypeFor[corev1.VolumeSource]():     true,
	reflect.TypeFor[corev1.EnvVarSource]():     true,
}

func mergeStruct(to, from reflect.Value) {
	t := to.Type()
	switch {
	case t == reflect.TypeFor[corev1.EnvVar]():
		if !from.FieldByName("Value").IsZero() {
			to.FieldByName("ValueFrom").SetZero()
		}
		if !from.FieldByName("ValueFrom").IsZero() {
			to.FieldByName("Value").SetZero()
		}
	case t == reflect.TypeFor[corev1.Probe](), t == reflect.TypeFor[corev1.Volume]():
		clearUnion(to.Field(embedded(t)), from.Field(embedded(t)))
	case unions[t]:
		clearUnion(to, from)
	}
	for _, f := range Fields(t) {
		src := from.FieldByIndex(f.Index)
		if src.IsZero() {
			continue
		}
		mergeValue(to.FieldByIndex(f.Index), src, f)
	}
}

func mergeValue(to, from reflect.Value, f Field) {
	switch from.Kind() {
	case reflect.Struct:
		if f.Struct {
			mergeStruct(to, from)
		} else {
			to.Set(from)
		}
	case reflect.Pointer:
		if f.Struct && !to.IsNil() {
			mergeStruct(to.Elem(), from.Elem())
		} else {
			to.Set(from)
		}
	case reflect.Map:
		if to.IsNil() {
			to.Set(reflect.MakeMapWithSize(to.Type(), from.Len()))
		}
		for it := from.MapRange(); it.Next(); {
			to.SetMapIndex(it.Key(), it.Value())
		}
	case reflect.Slice:
		mergeSlice(to, from, f)
	default:
		to.Set(from)
	}
}

func mergeSlice(to, from reflect.Value, f Field) {
	if !f.Merge {
		to.Set(from)
		return
	}
	var key []int
	if f.MergeKey != "" {
		key = FieldIndex(to.Type().Elem(), f.MergeKey)
	}
	for i := range from.Len() {
		src := from.Index(i)
		if at := find(to, src, key); at < 0 {
			to.Set(reflect.Append(to, src))
		} else if key != nil {
			mergeStruct(to.Index(at), src)
		}
	}
}

// find looks for the element with src's key; with no key for an equal one.
func find(list, src reflect.Value, key []int) int {
	if key != nil {
		src = src.FieldByIndex(key)
	}
	for i := range list.Len() {
		el := list.Index(i)
		if key != nil {
			el = el.FieldByIndex(key)
		}
		if el.Equal(src) {
			return i
		}
	}
	return -1
}

// embedded is the union that a type inlines.
func embedded(t reflect.Type) int {
	for i := range t.NumField() {
		if unions[t.Field(i).Type] {
			return i
		}
	}
	return -1
}

// clearUnion empties to when from has a member that is not the one that to has.
func clearUnion(to, from reflect.Value) {
	for i := range from.NumField() {
		if from.Field(i).IsZero() {
			continue
		}
		for j := range to.NumField() {
			if j != i {
				to.Field(j).SetZero()
			}
		}
		return
	}
}
