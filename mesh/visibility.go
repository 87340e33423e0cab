package mesh

import "slices"

// visible applies the rules of exportTo: nothing or "*" means every namespace, "."
// the object's own, "~" none, anything else is the name of a namespace. fallback
// is used when exportTo is empty (MeshConfig.default*ExportTo).
func visible(exportTo, fallback []string, owner, client string) bool {
	if len(exportTo) == 0 {
		exportTo = fallback
	}
	if len(exportTo) == 0 {
		return true
	}
	for _, e := range exportTo {
		switch e {
		case "*":
			return true
		case "~":
		case ".":
			if owner == client {
				return true
			}
		default:
			if e == client {
				return true
			}
		}
	}
	return false
}

// public reports whether every namespace sees the object.
func public(exportTo, fallback []string) bool {
	if len(exportTo) == 0 {
		exportTo = fallback
	}
	return len(exportTo) == 0 || slices.Contains(exportTo, "*")
}

// privateOnly reports whether only the object's own namespace sees it.
func privateOnly(exportTo, fallback []string, owner string) bool {
	if len(exportTo) == 0 {
		exportTo = fallback
	}
	if len(exportTo) == 0 {
		return false
	}
	for _, e := range exportTo {
		if e != "." && e != owner && e != "~" {
			return false
		}
	}
	return true
}
