// Relative addresses: the page also works where something in front of the gateway adds a prefix.
window.ui = SwaggerUIBundle({
  url: "apis/headrace/v1/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  docExpansion: "list",
  persistAuthorization: true,
  tryItOutEnabled: true,
  validatorUrl: null,
});
