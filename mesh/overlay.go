package mesh

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// overlay copies onto dst the fields of src that raw, the JSON src was decoded from, mentions: so that an
// explicit false or 0 replaces a default of true, which proto.Merge cannot do. Messages are
// merged, maps are merged by key, lists are replaced. It returns a warning for each key that is no field.
func overlay(dst, src protoreflect.Message, raw map[string]any, path string) []string {
	warnings := unknownKeys(src.Descriptor(), raw, path)
	fields := src.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		value, ok := raw[f.JSONName()]
		if !ok {
			value, ok = raw[string(f.Name())]
		}
		if !ok {
			continue
		}
		sub, isObject := value.(map[string]any)
		switch {
		case f.IsMap():
			if src.Has(f) {
				m := dst.Mutable(f).Map()
				src.Get(f).Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
					m.Set(k, v)
					return true
				})
			}
		case !f.IsList() && isObject && ours(f.Message()) && src.Has(f):
			warnings = append(warnings, overlay(dst.Mutable(f).Message(), src.Get(f).Message(), sub, path+f.JSONName()+".")...)
		case src.Has(f):
			dst.Set(f, src.Get(f))
			if list, ok := value.([]any); ok && ours(f.Message()) {
				for i, e := range list {
					if sub, ok := e.(map[string]any); ok {
						warnings = append(warnings, deepUnknownKeys(f.Message(), sub, fmt.Sprintf("%s%s[%d].", path, f.JSONName(), i))...)
					}
				}
			}
		default:
			dst.Clear(f)
		}
	}
	return warnings
}

// ours tells messages with fields of their own from those with a JSON form of their own, such as durations.
func ours(m protoreflect.MessageDescriptor) bool {
	return m != nil && m.FullName().Parent() != "google.protobuf"
}

func unknownKeys(m protoreflect.MessageDescriptor, raw map[string]any, path string) []string {
	var out []string
	for key := range raw {
		if m.Fields().ByJSONName(key) == nil && m.Fields().ByName(protoreflect.Name(key)) == nil {
			out = append(out, path+key+" is not a field of "+string(m.Name())+"; ignored")
		}
	}
	slices.Sort(out)
	return out
}

func deepUnknownKeys(m protoreflect.MessageDescriptor, raw map[string]any, path string) []string {
	out := unknownKeys(m, raw, path)
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		if sub, ok := raw[f.JSONName()].(map[string]any); ok && !f.IsMap() && ours(f.Message()) {
			out = append(out, deepUnknownKeys(f.Message(), sub, path+f.JSONName()+".")...)
		}
	}
	return out
}
