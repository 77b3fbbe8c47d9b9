SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  queryConfigEnabled: false,  // or a link could show the document of somebody else
  validatorUrl: null,
});
