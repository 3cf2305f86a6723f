// What the vendored expression interpreter imports, from the vendored Vega beside it.
export const { ascending, isString, DisallowedObjectProperties } = globalThis.vega;
